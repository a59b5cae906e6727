"""PSNR, SSIM, LPIPS, the published protocol, tiles and intervals."""
