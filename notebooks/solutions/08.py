# Solutions of chapter 08. Each part replaces one exercise cell; the tests run them.

# %% 08-1
# The side of the square grows by a window's side with every layer.
pixels_after_five_layers = (8 * 5) ** 2


# %% 08-2
def lost_share(tile, radius):
    return 1 - tile**2 / (tile + 2 * radius) ** 2


# %% 08-3
def diffusion_index(x):
    g = x.flatten()
    differences = (g[:, None] - g[None, :]).abs().sum()
    gini = differences / (2 * len(g) ** 2 * g.mean())
    return 100 * (1 - gini)
