# Solutions of chapter 08. Each part replaces one exercise cell; the tests run them.
# ruff: noqa: F821 (a part runs inside its chapter, after the chapter's imports)

# %% 08-1
# The side of the square grows by a window's side with every layer.
pixels_after_five_layers = (8 * 5) ** 2


# %% 08-2
def self_ensemble(model, lr):
    total = 0
    for k in range(4):
        for flip in ((), (-1,)):
            large = model(torch.rot90(lr, k, (-2, -1)).flip(flip))
            total = total + torch.rot90(large.flip(flip), -k, (-2, -1))
    return total / 8


# %% 08-3
def diffusion_index(x):
    g = x.flatten()
    differences = (g[:, None] - g[None, :]).abs().sum()
    gini = differences / (2 * len(g) ** 2 * g.mean())
    return 100 * (1 - gini)
