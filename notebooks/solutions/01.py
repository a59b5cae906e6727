# Solutions of chapter 01. Each part replaces one exercise cell; the tests run them.
# ruff: noqa: F821 (a part runs inside its chapter, after the chapter's imports)

# %% 01-1
# The kernel of width 4, stretched by two, covers 8 pixels a row and 8 rows.
pixels_read = 8 * 8


# %% 01-2
def aligned_pair(lr, hr, y, x, size, factor):
    lr_crop = lr[..., y : y + size, x : x + size]
    y, x, size = y * factor, x * factor, size * factor
    hr_crop = hr[..., y : y + size, x : x + size]
    return lr_crop, hr_crop


# %% 01-3
def self_ensemble(model, lr):
    total = 0
    for k in range(8):
        sr = model(dihedral(lr, k))
        if k >= 4:
            sr = sr.flip(-1)
        total = total + torch.rot90(sr, -(k % 4), (-2, -1))
    return total / 8
