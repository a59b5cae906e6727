"""The command line as a user meets it: what it prints, and one line when something is wrong."""

import importlib.metadata
import os
import signal
import subprocess
import sys
import time

import processes
import pytest
import torch
from torch.testing import assert_close

from srlab import cli
from srlab.data.images import write_image
from srlab.models import zoo
from srlab.models.generators import fold
from srlab.training.monitor import read_rows
from srlab.training.release import export
from srlab.training.state import load_checkpoint


@pytest.fixture
def run(monkeypatch, capsys):
    """Call ``srlab`` with arguments in this process; returns (exit status, stdout, stderr)."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["srlab", *map(str, arguments)])
        try:
            cli.main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code or 0
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def photos(tmp_path):
    """A folder of two small pictures."""
    folder = tmp_path / "photos"
    generator = torch.Generator().manual_seed(0)
    for i in range(2):
        coarse = torch.rand(1, 3, 8, 10, generator=generator)
        smooth = torch.nn.functional.interpolate(coarse, scale_factor=8, mode="bilinear")
        write_image(smooth[0], folder / f"{i}.png")
    return folder


TINY = ["--steps", "2", "--batch-size", "2", "--patch-size", "8", "--device", "cpu"]


def test_import_is_cheap():
    code = (
        "import torch, time; begin = time.process_time(); import srlab;"
        "print(time.process_time() - begin)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(out.stdout) < 1


def test_version_is_that_of_the_installed_package(run):
    status, out, _ = run("--version")
    assert (status, out) == (0, f"srlab {importlib.metadata.version('srlab')}\n")


def test_datasets_lists_every_set(run):
    status, out, _ = run("datasets")
    assert status == 0
    for name in ("photos", "div2k-train", "set5", "urban100"):
        assert name in out


def test_evaluate_prints_a_table_and_writes_csv(run, photos, tmp_path):
    csv = tmp_path / "scores" / "bicubic.csv"
    status, out, _ = run("evaluate", "bicubic", "--dataset", photos, "--csv", csv)
    assert status == 0
    assert "mean" in out
    rows = csv.read_text().splitlines()
    assert rows[0] == "image,psnr,ssim"
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "mean"]


def test_evaluate_puts_lpips_beside_psnr_and_ssim(run, photos, tmp_path, monkeypatch):
    """With AlexNet's layers at random: the figure is called relative."""
    from safetensors.torch import save_file

    from srlab.evaluation import perceptual

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("SRLAB_DATA", str(tmp_path))
    status, _, err = run("evaluate", "bicubic", "--dataset", photos, "--lpips")
    assert status == 1
    assert "srlab fetch lpips-alex" in err
    status, _, err = run("evaluate", "bicubic", "--dataset", photos, "--frechet")
    assert status == 1
    assert "srlab fetch vgg16" in err

    (tmp_path / "weights").mkdir()
    features = perceptual.architecture("alex").state_dict()
    save_file(features, tmp_path / "weights" / "alexnet_features_imagenet.safetensors")
    csv = tmp_path / "scores.csv"
    status, out, _ = run("evaluate", "bicubic", "--dataset", photos, "--csv", csv, "--lpips")
    assert status == 0
    assert "LPIPS-alex" in out
    rows = csv.read_text().splitlines()
    assert rows[0] == "image,psnr,ssim,LPIPS-alex (relative)"
    assert all(float(row.split(",")[3]) > 0 for row in rows[1:])


def test_train_resume_export_and_evaluate(run, photos, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    folder = tmp_path / "run"
    command = ["train", "srresnet", "--data", photos, "--validate", photos, "--out", folder, *TINY]
    status, out, _ = run(*command)
    assert status == 0
    assert "2 steps" in out

    command[command.index("2")] = "3"  # more steps: the run goes on
    status, out, _ = run(*command)
    assert status == 0
    assert "3 steps" in out

    before = (folder / "checkpoint.safetensors").read_bytes()
    for file in (folder / "checkpoint.safetensors", folder / "log.csv", tmp_path / "mine.pth"):
        status, _, err = run("export", folder, file)
        assert status == 1
        assert err.startswith(f"srlab: {file} ")
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert (folder / "log.csv").read_text().startswith("step,")
    assert not (tmp_path / "mine.pth").exists()

    weights, log = tmp_path / "mine.safetensors", tmp_path / "mine.csv"
    for precious in (weights, log):
        precious.write_text("precious")
        status, _, err = run("export", folder, weights)
        assert (status, precious.read_text()) == (1, "precious")
        assert err == f"srlab: {precious} is there already: add --force to overwrite it.\n"
        assert sorted(tmp_path.glob("mine*")) == [precious]
        precious.unlink()
    with monkeypatch.context() as patch:  # stopped while it scores
        patch.setattr("srlab.training.release.status", lambda name: (tmp_path, 1))
        patch.setattr("srlab.training.release.find", lambda name: [])
        patch.setattr("srlab.evaluation.protocol.evaluate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            export(folder, weights)
        nowhere = folder / "log.csv" / "mine.safetensors"  # told before
        status, _, err = run("export", folder, nowhere)
        assert status == 1
        assert err.startswith(f"srlab: cannot write {nowhere} ")
    assert not list(tmp_path.glob("mine*"))
    log.write_text("old")
    how = ["--half", "--force", "--trained-on", "two tiny pictures"]
    status, _, _ = run("export", folder, weights, *how)
    assert status == 0
    assert weights.stat().st_size < 2e6
    assert log.read_text().startswith("step,")
    status, out, _ = run("evaluate", weights, "--dataset", photos)
    assert status == 0
    assert "mean" in out


def test_train_srgan_from_a_run(run, photos, tmp_path, monkeypatch):
    data = ["--data", photos, "--validate", photos]
    assert run("train", "srresnet", *data, "--out", tmp_path / "a", *TINY)[0] == 0
    srgan = ["train", "srgan", *data, "--out", tmp_path / "b", *TINY]
    status, out, _ = run(*srgan, "--init", tmp_path / "a")
    assert status == 0
    assert "2 steps" in out
    layers = [type(m).__name__ for m in zoo.load(tmp_path / "b").modules()]
    assert "BatchNorm2d" not in layers  # folded before the game
    half_way = tmp_path / "half.safetensors"
    assert (
        run("export", tmp_path / "b", half_way, "--start", tmp_path / "a", "--share", "0.5")[0] == 0
    )
    start, end = fold(zoo.load(tmp_path / "a")), zoo.load(tmp_path / "b")
    for name, weight in zoo.load(half_way).state_dict().items():
        assert_close(weight, (start.state_dict()[name] + end.state_dict()[name]) / 2)
    status, _, err = run("export", tmp_path / "b", half_way, "--share", "0.5")
    assert status == 1
    assert "--share needs --start" in err
    monkeypatch.setattr("srlab.models.zoo.released", dict)
    status, _, err = run(*srgan)
    assert status == 1
    assert "--init" in err


def test_train_goes_on_from_the_weights_that_init_names(run, photos, tmp_path):
    common = ["--data", photos, "--validate", photos, *TINY]
    assert run("train", "srresnet", *common, "--out", tmp_path / "a")[0] == 0
    still = [*common, "--init", tmp_path / "a", "--lr", "1e-12", "--out", tmp_path / "b"]
    assert run("train", "srresnet", *still)[0] == 0
    first, second = (dict(zoo.load(tmp_path / name).named_parameters()) for name in "ab")
    for name, weight in first.items():
        torch.testing.assert_close(second[name], weight)
    status, _, err = run("train", "wdrn", *still[:-1], tmp_path / "c")
    assert status == 1
    assert "another network" in err


def test_train_the_final_model_from_a_run_by_a_profile(run, photos, tmp_path):
    """WDRN, perceptual loss, VGG critic and Wasserstein loss, end to end."""
    data = ["--data", photos, "--validate", photos]
    assert run("train", "wdrn", *data, "--out", tmp_path / "a", *TINY)[0] == 0
    final = ["train", "wdrn-vgg-wgan", *data, "--out", tmp_path / "b", "--profile", "smoke"]
    status, out, _ = run(*final, "--init", tmp_path / "a", "--steps", 2, "--device", "cpu")
    assert status == 0
    assert "2 steps" in out
    log = (tmp_path / "b" / "log.csv").read_text().splitlines()
    assert {"gap", "penalty", "gradient_norm", "perceptual"} <= set(log[0].split(","))
    status, out, _ = run("evaluate", tmp_path / "b", "--dataset", photos)
    assert status == 0


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["evaluate", "srresnt"], "srresnet"),
        (["evaluate", "bicubic", "--dataset", "set55"], "set5"),
        (["fetch", "div2k-trian"], "cannot be fetched (did you mean div2k-train?)"),
        (["fetch", "vgg17"], "cannot be fetched (did you mean vgg1"),
        (["fetch", "."], "'.' cannot be fetched: name one of photos, "),
        (["train", "edsr"], "srresnet"),
        (["train", "srresnet", "--data", "photos@x"], "@2"),
        (["train", "srresnet", "--steps", "0"], "steps"),
        (["course", "run", "--profile", "huge"], "smoke"),
        (["course", "run", "-p", "seed"], "NAME=VALUE"),
        (["course", "run", "-p", "sede=3"], "seed"),
        (["course", "run", "-p", "seed=[1"], "'[1' is not valid YAML"),
        (["course", "run", "-p", "seed=!!python/object:os.system x"], "not valid YAML"),
        (["course", "run", "-p", "seed=2026-01-01"], "seed cannot be the date"),
        (["export", "nowhere", "x.safetensors"], "nowhere"),
    ],
)
def test_bad_arguments_give_one_line(run, arguments, expected):
    status, _, err = run(*arguments)
    assert status == 1
    lines = [line for line in err.splitlines() if line.startswith("srlab: ")]
    assert len(lines) == 1
    assert expected in lines[0]
    assert "Traceback" not in err


def test_evaluate_where_no_device_of_that_name_is(run, photos):
    device = ("--device", "marble")
    status, _, err = run("evaluate", "bicubic", "--dataset", photos, *device)
    assert status == 1
    assert err.startswith("srlab: device marble cannot be used (")
    assert len(err.splitlines()) == 1
    status, _, err = run("bench", "upscale", *device)
    assert status == 1
    assert err.startswith("srlab: device marble cannot be used (")
    status, out, _ = run("evaluate", "bicubic", "--dataset", photos, "--device", "auto")
    assert status == 0
    assert "mean" in out


def test_wrong_settings_are_told_before_pictures_are_decoded(run, photos):
    for wrong in (["--loss", "l3"], ["--steps", "0"], ["--lr", "nan"], ["--log-every", "0"]):
        status, out, err = run("train", "srresnet", "--data", photos, *wrong)
        assert (status, out) == (1, "")
        assert wrong[0].strip("-").replace("-", "_") in err


def test_a_packed_folder_is_given_alone(run, photos, tmp_path):
    assert run("pack", photos, tmp_path / "bank")[0] == 0
    status, _, err = run("train", "srresnet", "--data", tmp_path / "bank", "--data", photos, *TINY)
    assert status == 1
    assert "alone" in err


def test_a_packed_set_is_replaced_only_if_told_to(run, photos, tmp_path):
    assert run("pack", photos, tmp_path / "bank")[0] == 0
    again = ("pack", photos, tmp_path / "bank", "--scale", 2)
    before = (tmp_path / "bank" / "bank.json").read_bytes()
    status, _, err = run(*again)
    assert status == 1
    assert "holds a packed set already: add --force to replace it" in err
    assert (tmp_path / "bank" / "bank.json").read_bytes() == before
    assert run(*again, "--force")[0] == 0
    assert (tmp_path / "bank" / "bank.json").read_bytes() != before


def test_a_bank_of_another_scale_is_refused(run, photos, tmp_path):
    assert run("pack", photos, tmp_path / "bank", "--scale", 2)[0] == 0
    status, _, err = run(
        "train", "srresnet", "--data", tmp_path / "bank", "--validate", photos, *TINY,
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert status == 1
    assert err == "srlab: --data was packed with --scale 2, but srresnet is x4.\n"
    assert not (tmp_path / "run").exists()


def test_sizes_of_nothing(run, photos, tmp_path):
    status, _, err = run("pack", photos, tmp_path / "bank", "--scale", 0)
    assert status == 2
    assert "--scale" in err
    status, _, err = run("train", "srgan", "--data", photos, "--critic-width", 0, *TINY)
    assert status == 2
    assert "--critic-width" in err
    assert not (tmp_path / "bank").exists()


def test_bad_folders_and_files_give_one_line(run, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    status, _, err = run("evaluate", "bicubic", "--dataset", tmp_path / "empty")
    assert status == 1
    assert str(tmp_path / "empty") in err

    text = tmp_path / "text"
    text.mkdir()
    (text / "a.png").write_text("not a picture")
    status, _, err = run("evaluate", "bicubic", "--dataset", text)
    assert status == 1
    assert "a.png" in err

    png = photos / "0.png"
    png.write_bytes(png.read_bytes()[:100])
    status, _, err = run("train", "srresnet", "--data", photos, *TINY)
    assert status == 1
    assert "0.png" in err


def test_image_smaller_than_the_crop(run, photos):
    status, _, err = run("train", "srresnet", "--data", photos, "--patch-size", 48)
    assert status == 1
    assert "0.png is too small" in err


@pytest.mark.parametrize(
    "wrong",
    [
        ["--lr", "1e30", "--steps", "3", "--log-every", "3", "--validate-every", "0"],
        ["--patch-size", "48"],
        ["--engine", "fast"],
        ["--minutes", "-1"],
    ],
)
def test_a_training_that_is_refused_leaves_nothing(run, photos, tmp_path, wrong):
    common = ["train", "srresnet", "--data", photos, "--validate", photos, "--device", "cpu"]
    common += ["--engine", "fp32", *wrong, "--out"]
    status, _, err = run(*common, tmp_path / "new" / "run")
    assert (status, "Traceback" in err) == (1, False)
    assert sorted(os.listdir(tmp_path)) == ["photos"]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    assert run(*common, tmp_path / "mine")[0] == 1
    assert os.listdir(tmp_path / "mine") == ["notes.txt"]


def test_a_log_with_rows_tells_how_a_training_went_wrong(run, photos, tmp_path):
    """The next try begins from nothing: no plan binds it, and the log is written anew."""
    out = tmp_path / "run"
    common = ["train", "srresnet", "--data", photos, "--validate", photos, "--out", out, *TINY]
    status, _, err = run(*common, "--lr", "1e30", "--steps", "9", "--log-every", "1")
    assert status == 1
    assert "became NaN or infinite" in err
    assert os.listdir(out) == ["log.csv"]
    assert run(*common)[0] == 0
    assert [row["step"] for row in read_rows(out / "log.csv")] == ["2"]


def test_unwritable_output_folder(run, photos, tmp_path):
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "run"
    status, _, err = run("train", "srresnet", "--data", photos, "--out", out, *TINY)
    assert status == 1
    assert str(out) in err


def test_checkpoint_of_another_architecture(run, photos, tmp_path):
    data = ["--data", photos, "--validate", photos, "--out", tmp_path / "a", *TINY]
    assert run("train", "srresnet", *data)[0] == 0
    status, _, err = run("train", "srresnet-16", *data)
    assert status == 1
    assert "another architecture" in err


def test_resuming_with_other_data_or_another_seed_is_refused(run, photos, tmp_path):
    common = ["--validate", photos, "--out", tmp_path / "a", *TINY]
    assert run("train", "srresnet", "--data", photos, *common)[0] == 0
    status, _, err = run("train", "srresnet", "--data", photos, "--seed", 5, *common)
    assert status == 1
    assert "seed = 0, now 5" in err
    status, _, err = run("train", "srresnet", "--data", photos / "0.png", *common)
    assert status == 1
    assert "data = '2 pictures, 0.png to 1.png" in err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_what_follows_a_stopped_training_does_not_go_on(photos, tmp_path, number):
    """Status 130 or 143, a checkpoint of the last step, and nothing half-made."""
    out = tmp_path / "a"
    command = ["train", "srresnet", "--data", photos, "--out", out, "--validate", photos, *TINY]
    command += ["--steps", "100000", "--log-every", "1"]
    command += ["--engine", "fp32", "--validate-every", "0"]
    first = processes.start(processes.srlab, *command, log=tmp_path / "first")
    while first.is_alive() and len(read_rows(out / "log.csv")) < 5:
        time.sleep(0.1)
    second = processes.start(processes.srlab, *command, log=tmp_path / "second")
    second.join()
    os.kill(first.pid, number)
    first.join()
    assert first.exitcode == 128 + number
    refused = (tmp_path / "second").read_text()
    assert (second.exitcode, "Traceback" in refused) == (1, False)
    assert f"process {first.pid} is busy there with a training" in refused
    _, info = load_checkpoint(out / "checkpoint.safetensors")
    assert info["step"] == int(read_rows(out / "log.csv")[-1]["step"])
    assert sorted(os.listdir(out)) == ["checkpoint.safetensors", "log.csv", "plan.json"]
