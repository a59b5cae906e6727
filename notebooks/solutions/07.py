# Solutions of chapter 07. Each part replaces one exercise cell; the tests run them.

# %% 07-1
runs_of_the_grid = 5**4 * 3


# %% 07-2
def log_uniform(u, low, high):
    return low * (high / low) ** u


# %% 07-3
def unbeaten(psnr, features):
    front = []
    for p, f in zip(psnr, features, strict=True):
        beaten = any(
            q >= p and g <= f and (q > p or g < f) for q, g in zip(psnr, features, strict=True)
        )
        front.append(not beaten)
    return front
