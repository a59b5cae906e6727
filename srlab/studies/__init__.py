"""Many small trainings that answer a question: ablation, claims, tuning, sweeps."""
