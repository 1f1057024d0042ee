"""Pipelines run without ComfyUI, against diffusers' own: noise, predictions, sampling, pictures, training, refusals."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
import diffusers  # noqa: E402

from seqlora.backends.denoisers import DiscreteDenoiser, FlowDenoiser  # noqa: E402
from seqlora.backends.families import timestep_shift  # noqa: E402
from seqlora.backends.load import load_pipeline  # noqa: E402
from seqlora.backends.pipelines import PipelineModel  # noqa: E402
from seqlora.cli.main import main  # noqa: E402
from seqlora.demo import micro  # noqa: E402
from seqlora.demo.demo_model import DemoModel  # noqa: E402
from seqlora.diffusion.sampling import euler  # noqa: E402
from seqlora.errors import SeqLoRAError  # noqa: E402
from seqlora.library.store import Library  # noqa: E402
from seqlora.lora.layouts import PREFIX  # noqa: E402
from seqlora.lora.targets import TARGETS, choose_layers  # noqa: E402
from seqlora.lora.types import LoRAPair  # noqa: E402
from seqlora.method.metrics import basis_error  # noqa: E402
from seqlora.settings import Settings  # noqa: E402
from seqlora.training.progress import run_to_end  # noqa: E402
from seqlora.training.request import TrainingRequest  # noqa: E402
from seqlora.training.train import train_steps  # noqa: E402
from tests.support.tiny_pipelines import PIPELINES, SD_SCHEDULE, UNET, XL_UNET, flux_transformer, saved, sd3_transformer  # noqa: E402

PROMPT = "a photo of zyx dog"
SIDES = (8, 12)  # of latents
SETTINGS = Settings(steps=10, batch_size=2, learning_rate=1e-2, basis_learning_rate=3e-3)


@pytest.fixture(scope="module", params=PIPELINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(kind, tmp_path_factory.mktemp("pipeline"))


@pytest.fixture(scope="module")
def model(folder: Path) -> PipelineModel:
    return quick(load_pipeline(folder, "cpu"))


def quick(model: PipelineModel) -> PipelineModel:
    """Measured on fewer captions before the first concept."""
    model.generic_captions = model.generic_captions[:4]
    return model


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Any:
    """The same pipeline as diffusers runs it."""
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def noise_for(model: PipelineModel, count: int = 1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, model.latent_shape[0], *SIDES, generator=generator)


def relative(value: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((value - wanted).norm() / wanted.norm())


# against diffusers


def draw(model: PipelineModel, noise: torch.Tensor, guidance: float, steps: int) -> torch.Tensor:
    cond, uncond = model.encode_captions([PROMPT, ""])
    return euler(model.denoiser, noise, [cond] * len(noise), [uncond] * len(noise), guidance, steps)


@torch.no_grad()
def test_sampling_is_the_pipelines_own(model, pipe, kind):
    noise, steps = noise_for(model), 4
    height, width = (side * pipe.vae_scale_factor for side in SIDES)
    common = {"height": height, "width": width, "num_inference_steps": steps, "output_type": "latent"}
    if kind == "flux":
        tokens = height * width // 16
        packed = pipe._pack_latents(noise, 1, noise.shape[1], *SIDES)
        wanted = pipe(PROMPT, latents=packed, guidance_scale=3.5, **common).images
        wanted = pipe._unpack_latents(wanted, height, width, pipe.vae_scale_factor)
        usual = model.denoiser.shift
        model.denoiser.shift = timestep_shift(pipe.scheduler.config, tokens)
        with model.using({}):
            ours = draw(model, noise, 1.0, steps)
        model.denoiser.shift = usual
    elif kind == "sd3":
        sigmas = [1 - i / steps for i in range(steps)]
        wanted = pipe(PROMPT, negative_prompt="", latents=noise, guidance_scale=5.0, sigmas=sigmas, **common).images
        ours = draw(model, noise, 5.0, steps)
    else:
        euler_scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="linspace")
        own, pipe.scheduler = pipe.scheduler, euler_scheduler
        wanted = pipe(PROMPT, negative_prompt="", latents=noise, guidance_scale=5.0, **common).images
        torch.testing.assert_close(model.denoiser.sigmas(steps), euler_scheduler.sigmas)
        pipe.scheduler = own
        ours = draw(model, noise, 5.0, steps)
    assert relative(ours, wanted) < 1e-5


@torch.no_grad()
def test_pictures_are_the_pipelines_own(model, pipe, kind):
    pixels = torch.rand(16, 24, 3, generator=torch.Generator().manual_seed(1))
    (latent,) = model.encode_pictures([pixels])
    vae = pipe.vae.config
    processed = pipe.image_processor.preprocess(pixels.movedim(-1, 0)[None])
    wanted = (pipe.vae.encode(processed).latent_dist.mean - (vae.shift_factor or 0)) * vae.scaling_factor
    torch.testing.assert_close(latent, wanted[0], rtol=1e-5, atol=1e-5)
    decoded = pipe.vae.decode(wanted / vae.scaling_factor + (vae.shift_factor or 0)).sample
    picture = torch.from_numpy(pipe.image_processor.postprocess(decoded, output_type="np"))
    torch.testing.assert_close(model.decode(latent[None]), picture, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_discrete_predictions_are_those_of_ddim(prediction, zero_snr):
    if zero_snr and prediction == "epsilon":
        pytest.skip("eps says nothing at zero signal")
    scheduler = diffusers.DDIMScheduler(**SD_SCHEDULE, prediction_type=prediction, rescale_betas_zero_snr=zero_snr)
    scheduler.set_timesteps(1000)
    seen: dict[str, torch.Tensor] = {}

    def predict(x: torch.Tensor, timestep: torch.Tensor, cond: Any) -> torch.Tensor:
        seen.update(x=x, timestep=timestep, out=torch.tanh(x.roll(1, -1)))
        return seen["out"]

    v = prediction == "v_prediction"
    denoiser = DiscreteDenoiser(predict, scheduler.alphas_cumprod, v, torch.device("cpu"), torch.float32)
    clean, noise = torch.randn(2, 5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    timesteps = torch.tensor([0, 1, 400, 998, 999])
    sigma = denoiser.table[timesteps]
    ours = denoiser(denoiser.add_noise(clean, noise, sigma), sigma, [None] * 5)
    torch.testing.assert_close(seen["timestep"], timesteps.float())
    noisy = scheduler.add_noise(clean, noise, timesteps)
    tolerance = 5 * 2**-12 if zero_snr else 1e-5  # we end at a signal of 2**-12 instead of 0, as diffusers' Euler does
    torch.testing.assert_close(seen["x"], noisy, rtol=1e-5, atol=tolerance)
    for i, t in enumerate(timesteps):
        wanted = scheduler.step(seen["out"][i], int(t), seen["x"][i]).pred_original_sample
        torch.testing.assert_close(ours[i], wanted, rtol=1e-5, atol=tolerance)
    levels = denoiser.sample_sigmas(4000, torch.Generator().manual_seed(0))
    assert levels.isfinite().all() and denoiser.table.diff().min() > 0
    assert torch.isin(levels, denoiser.table).all() and len(levels.unique()) > 900


def test_flow_predictions_are_those_of_the_flow_scheduler():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    denoiser = FlowDenoiser(lambda x, t, cond: torch.tanh(x.roll(1, -1)), torch.device("cpu"), shift=3.0)
    clean, noise = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for start in (0.05, 0.5, 1.0):
        scheduler.set_timesteps(sigmas=[start])
        sigma = denoiser._shifted(torch.full((3,), start))
        torch.testing.assert_close(sigma[0], scheduler.sigmas[0])
        noisy = denoiser.add_noise(clean, noise, sigma)
        torch.testing.assert_close(noisy, scheduler.scale_noise(clean, scheduler.timesteps, noise))
        wanted = scheduler.step(torch.tanh(noisy.roll(1, -1)), scheduler.timesteps[0], noisy).prev_sample
        torch.testing.assert_close(denoiser(noisy, sigma, [None] * 3), wanted, rtol=1e-5, atol=1e-5)


def test_flux_shift_grows_with_the_picture_as_in_diffusers():
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    config = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    for tokens in (256, 1024, 4096):
        assert timestep_shift(config, tokens) == pytest.approx(math.exp(calculate_shift(tokens)))


# training


def lesson(seed: int = 0, side: int = 16) -> TrainingRequest:
    generator = torch.Generator().manual_seed(seed)
    return TrainingRequest(f"dog {seed}", f"zyx{seed}", "dog", list(torch.rand(3, side, side, 3, generator=generator)))


@pytest.fixture(scope="module")
def library(model: PipelineModel, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """Two concepts."""
    library = Library.create(tmp_path_factory.mktemp("library") / "dogs", rank=2, capacity=8, targets="attention and mlp")
    for seed in range(2):
        library = run_to_end(train_steps(library, lesson(seed), SETTINGS, model)).library
    return library


def test_concepts_are_taught_and_drawn(model, library, kind):
    assert library.base.layout == model.layout
    first, second = (library.load(name) for name in library.names)
    # What the last SD3 block makes of the text goes nowhere, so its query is left out.
    assert all(pair.up.any() for pair in first.values())
    idle = {"transformer.transformer_blocks.1.attn.add_q_proj"} if kind == "sd3" else set()
    assert model.layers(library.targets).keys() - first.keys() == idle
    assert library.concepts[0].metrics.get("layers_left_out", 0) == len(idle)
    assert max(basis_error([first, second])) < 1e-5
    assert all(math.isfinite(record.metrics["last_loss"]) for record in library.concepts)
    weights = {name: value.clone() for name, value in model.network.state_dict().items()}
    noise = noise_for(model, 2)
    with torch.inference_mode():
        bare = draw(model, noise, 2.0, 3)
        with model.using(library.compose({name: 1.0 for name in library.names})):
            changed = draw(model, noise, 2.0, 3)
        again = draw(model, noise, 2.0, 3)
    pictures = model.decode(changed)
    assert pictures.shape == (2, *(side * 2 for side in SIDES), 3)
    assert pictures.isfinite().all() and 0 <= pictures.min() and pictures.max() <= 1
    assert relative(changed, bare) > 1e-3 and torch.equal(bare, again)
    assert all(torch.equal(value, weights[name]) for name, value in model.network.state_dict().items())
    assert not any(p.requires_grad for p in model.network.parameters()) and not model.network.training


def test_teaching_lowers_the_loss(tmp_path):
    model = quick(load_pipeline(saved("sd", tmp_path), "cpu"))
    library = Library.create(tmp_path / "dogs", rank=4, capacity=4, targets="attention and mlp")
    settings = SETTINGS.with_(steps=60, batch_size=3, learning_rate=3e-2)
    losses = run_to_end(train_steps(library, lesson(), settings, model)).losses
    assert sum(losses[-15:]) < 0.97 * sum(losses[:15])


@pytest.mark.parametrize("kind", ["sd", "sd3", "flux"], indirect=True)
def test_bfloat16_and_gradient_checkpointing_train(folder, tmp_path):
    """What a GPU gets."""
    model = quick(load_pipeline(folder, "cpu", torch.bfloat16))
    model.network.enable_gradient_checkpointing()
    library = Library.create(tmp_path / "dogs", rank=2, capacity=8, targets="attention")
    taught = run_to_end(train_steps(library, lesson(), SETTINGS.with_(steps=3), model))
    assert all(math.isfinite(loss) for loss in taught.losses)
    assert any(pair.up.norm() > 0 for pair in taught.library.load("dog 0").values())


def test_gradient_checkpointing_changes_no_gradient(folder, tmp_path):
    taught = []
    for checkpointing in (False, True):
        model = load_pipeline(folder, "cpu")
        if checkpointing:
            model.network.enable_gradient_checkpointing()
        library = Library.create(tmp_path / f"dogs{checkpointing}", rank=2, capacity=8, targets="attention and mlp")
        settings = SETTINGS.with_(steps=3, interference_weight=0.0, basis_init="random")
        taught.append(run_to_end(train_steps(library, lesson(), settings, model)).library.load("dog 0"))
    for name, pair in taught[0].items():
        torch.testing.assert_close(pair, taught[1][name], rtol=1e-4, atol=1e-6)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_teaches_and_draws(folder, kind, tmp_path):
    model = load_pipeline(folder)
    library = Library.create(tmp_path / "dogs", rank=2, capacity=8, targets="attention and mlp")
    library = run_to_end(train_steps(library, lesson(), SETTINGS.with_(steps=3), model)).library
    assert {p.device.type for p in model.pipe.text_encoder.parameters()} == {"cpu"}
    assert {p.device.type for p in model.network.parameters()} == {"cuda"} and model.network.is_gradient_checkpointing
    with model.using(library.compose({"dog 0": 1.0})):
        assert model.decode(draw(model, noise_for(model), 2.0, 2)).isfinite().all()


def test_equal_captions_are_encoded_once_and_alike(model):
    one, other, again = model.encode_captions([PROMPT, "a cat", PROMPT])
    assert one is again
    assert all(value.shape == other[key].shape and value.ndim in (1, 2) for key, value in one.items())
    assert not torch.equal(one["text"], other["text"])


def test_pictures_are_cut_to_whole_patches(model, kind):
    patch = 4 if kind in ("sd3", "flux") else 2
    (latent,) = model.encode_pictures([torch.rand(18, 23, 3)])
    assert latent.shape == (model.latent_shape[0], 18 // patch * patch // 2, 23 // patch * patch // 2)


def test_the_command_line_takes_a_pipeline(tmp_path, capsys):
    folder, pictures = saved("sd", tmp_path), tmp_path / "pictures"
    pictures.mkdir()
    for i in range(2):
        Image.effect_noise((40, 32), 60).convert("RGB").save(pictures / f"{i}.png")
    given = ["--library", str(tmp_path / "dogs"), "--model", str(folder)]
    assert main(["train", str(pictures), "--trigger", "zyx", "--steps", "2", "--rank", "2", "--capacity", "4", *given]) == 0
    out = tmp_path / "out.png"
    assert main(["sample", PROMPT, "--count", "2", "--steps", "2", "--out", str(out), *given]) == 0
    assert Image.open(out).size == (32, 16)  # two pictures of the model's usual 16 pixels, side by side
    assert main(["sample", PROMPT, "--model", str(tmp_path / "nowhere"), "--out", str(out)]) == 1
    assert "no diffusers pipeline" in capsys.readouterr().err


def test_the_demo_model_has_what_the_command_line_asks_for():
    side = micro.IMAGE_SIZE // micro.PATCH
    assert DemoModel.picture_side == micro.IMAGE_SIZE and DemoModel.latent_shape == (micro.LATENT_CHANNELS, side, side)


# layers and their names


def test_targets_mean_the_same_as_in_the_host():
    for config in (UNET, XL_UNET):
        unet = diffusers.UNet2DConditionModel(**config)
        for targets, kinds in zip(
            TARGETS, (("attn", "proj_in", "proj_out"), ("attn", "proj_in", "proj_out", ".ff.")), strict=True
        ):
            chosen = set(choose_layers(unet, targets, prefix=""))
            linear = {path for path, module in unet.named_modules() if isinstance(module, torch.nn.Linear)}
            assert chosen == {p for p in linear if ".attentions." in p and any(kind in p for kind in kinds)}
    narrow, wide = (set(choose_layers(unet, targets, prefix="")) for targets in TARGETS)
    assert narrow < wide and all(".ff." in path for path in wide - narrow)


@pytest.mark.parametrize("make", [sd3_transformer, flux_transformer])
def test_transformers_adapt_attention_and_mlp_only(make):
    network = make()
    attention, everything = (set(choose_layers(network, t, prefix="")) for t in ("attention", "attention and mlp"))
    linear = {path for path, module in network.named_modules() if isinstance(module, torch.nn.Linear)}
    in_blocks = {path for path in linear if "transformer_blocks." in path}
    assert everything == {path for path in in_blocks if ".norm" not in path}
    assert attention == {path for path in everything if ".attn." in path or path.endswith(".proj_out")}


# refusals


def change(folder: Path, file: str, **entries: Any) -> Path:
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))
    return folder


@pytest.mark.parametrize(
    ("file", "entries", "message"),
    [
        ("model_index.json", {"_class_name": "PixArtAlphaPipeline"}, "PixArtAlphaPipeline.*FluxPipeline"),
        ("model_index.json", {"_class_name": None}, "None, which cannot be taught"),
        ("model_index.json", {"text_encoder": [None, None]}, "has no text_encoder"),
        ("scheduler/scheduler_config.json", {"prediction_type": "sample"}, "DDIMScheduler predicts 'sample'"),
        ("unet/config.json", {"in_channels": 9}, "cannot be loaded"),
    ],
)
def test_pipelines_that_cannot_be_taught_are_refused(tmp_path, file, entries, message):
    with pytest.raises(SeqLoRAError, match=message):
        load_pipeline(change(saved("sd", tmp_path), file, **entries), "cpu")


def test_inpainting_models_are_refused(tmp_path, monkeypatch):
    from tests.support import tiny_pipelines

    monkeypatch.setitem(PIPELINES, "inpainting", lambda folder: tiny_pipelines.tiny_sd(folder, in_channels=9))
    with pytest.raises(SeqLoRAError, match="takes 9 channels"):
        load_pipeline(saved("inpainting", tmp_path), "cpu")


def test_damaged_folders_are_refused(tmp_path):
    with pytest.raises(SeqLoRAError, match="no diffusers pipeline at"):
        load_pipeline(tmp_path / "nowhere", "cpu")
    folder = saved("sd", tmp_path)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2])
    with pytest.raises(SeqLoRAError, match="cannot be loaded"):
        load_pipeline(folder, "cpu")
    weights.unlink()
    with pytest.raises(SeqLoRAError, match="cannot be loaded"):
        load_pipeline(folder, "cpu")
    (folder / "model_index.json").write_text("[]")
    with pytest.raises(SeqLoRAError, match="no diffusers pipeline at"):
        load_pipeline(folder, "cpu")


def test_folders_of_half_precision_files_load(tmp_path):
    torch.manual_seed(0)
    pipe = PIPELINES["sd"](tmp_path)
    pipe.save_pretrained(tmp_path / "pipeline", variant="fp16")
    model = load_pipeline(tmp_path / "pipeline", "cpu")
    assert model.network.dtype == torch.float32
    assert torch.equal(model.network.conv_in.weight, pipe.unet.conv_in.weight)


def test_concepts_of_another_model_are_refused(model, kind):
    name = next(iter(model.layers("attention")))
    with pytest.raises(SeqLoRAError, match="use the model that the library belongs to"):
        with model.using({name: LoRAPair(torch.zeros(5, 1), torch.zeros(3, 1))}):
            pass
    for stranger in (f"{PREFIX}blocks.0.attn.qkv", "transformer.transformer_blocks.99.attn.to_q"):
        with pytest.raises(SeqLoRAError, match="use the model that the library belongs to"):
            with model.using({stranger: LoRAPair(torch.zeros(32, 1), torch.zeros(32, 1))}):
                pass


@pytest.mark.parametrize("kind", ["sd3"], indirect=True)
def test_pictures_larger_than_sd3_has_places_for_are_refused(model):
    with pytest.raises(SeqLoRAError, match="limit is 64"):
        model.encode_pictures([torch.rand(16, 68, 3)])
