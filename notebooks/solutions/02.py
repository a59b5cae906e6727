# Solutions of chapter 02. Each part replaces one exercise cell; the tests run them.
# ruff: noqa: F821 (a part runs inside its chapter, after the chapter's imports)

# %% 02-1
# Two convolutions of 9 * 32 * 32 weights and 32 biases, two batch norms with a scale and a shift
# for each of 32 channels, one slope.
parameters_of_a_block = 2 * (9 * 32 * 32 + 32) + 2 * (2 * 32) + 1


# %% 02-2
def edsr_block(x, conv1, conv2):
    return x + 0.1 * conv2(F.relu(conv1(x)))


# %% 02-3
def smoothed_critic_loss(real, fake, target):
    real_part = target * F.logsigmoid(real) + (1 - target) * F.logsigmoid(-real)
    return -real_part.mean() - F.logsigmoid(-fake).mean()
