# Solutions of chapter 04. Each part replaces one exercise cell; the tests run them.

# %% 04-1
side_of_relu5_4 = 96 // 2**4


# %% 04-2
def several_taps(sr_maps, hr_maps, weights, scales):
    total = 0
    for tap, weight in weights.items():
        error = (sr_maps[tap] - hr_maps[tap]).square().mean()
        total = total + weight * error / scales[tap] ** 2
    return total


# %% 04-3
def gram(x):
    places = x.flatten(1)
    return places @ places.T / places.shape[1]
