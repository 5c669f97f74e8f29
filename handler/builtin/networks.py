"""The networks of the built-in model, each of a stock class, so that a stock pipeline loads the exported folder."""

import json

import torch
from diffusers import AutoencoderTiny, DPMSolverMultistepScheduler, UNet2DConditionModel
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

LATENTS = 8
WIDTH = 32  # channels of the autoencoder
CONTEXT = 128  # width of the text states
TOKENS = 77  # longest prompt, as everywhere in this family of models


def precision(device: torch.device) -> torch.dtype:
    """What products are trained in: half of the bits where the chip has units for that, and all where it would have to
    emulate them, which takes ten times as long.
    """
    native = device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return torch.bfloat16 if native else torch.float32


def autocast(device: torch.device) -> torch.autocast:
    """Products of this block at `precision`."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision(device) is torch.bfloat16)


def small_vae() -> AutoencoderTiny:
    """The autoencoder that is trained: four art pixels to a latent cell, at art resolution."""
    vae = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 3,
        decoder_block_out_channels=(WIDTH,) * 3,
        num_encoder_blocks=(0, 1, 2),
        num_decoder_blocks=(3, 2, 1),
        latent_channels=LATENTS,
        act_fn="silu",
        upsample_fn="nearest",
    )
    for block in vae.modules():
        if isinstance(block, nn.Conv2d):
            nn.init.kaiming_normal_(block.weight, a=0.6)
            if block.bias is not None:
                nn.init.zeros_(block.bias)
    for name, block in vae.named_modules():
        if name.endswith("conv.4"):  # the last convolution of a residual block
            block.weight.data.mul_(0.25)
    pin_to_centre(vae)
    return vae


def outer_kernels(vae: AutoencoderTiny) -> tuple[nn.Parameter, nn.Parameter]:
    """The first kernel of the encoder and the last one of the decoder."""
    return vae.encoder.layers[0].weight, vae.decoder.layers[-1].weight


@torch.no_grad()
def pin_to_centre(vae: AutoencoderTiny) -> None:
    """Keep the outermost kernels to one pixel: only then is the graft of `standard_vae` exact."""
    for kernel in outer_kernels(vae):
        centre = kernel[:, :, 1, 1].clone()
        kernel.zero_()
        kernel[:, :, 1, 1] = centre


@torch.no_grad()
def standard_vae(small: AutoencoderTiny, scaling_factor: float) -> AutoencoderTiny:
    """The same autoencoder with the usual factor of eight, for pictures whose art pixels are 2 x 2.

    Stock pipelines want sizes that are multiples of eight, which art sizes are not. The encoder first takes the mean of
    2 x 2 pixels, the decoder repeats each pixel at the end; nothing is lost or added.
    """
    vae = AutoencoderTiny(
        encoder_block_out_channels=(WIDTH,) * 4,
        decoder_block_out_channels=(WIDTH,) * 4,
        num_encoder_blocks=(0, 0, 1, 2),
        num_decoder_blocks=(3, 2, 1, 0),
        latent_channels=LATENTS,
        act_fn="silu",
        upsample_fn="nearest",
        scaling_factor=scaling_factor,
    )
    eye = torch.eye(WIDTH)
    first, *rest = small.encoder.layers
    vae.encoder.layers[0].load_state_dict(first.state_dict())
    mean = vae.encoder.layers[1].weight
    mean.zero_()
    mean[:, :, 1:, 1:] = eye[:, :, None, None] / 4
    for target, source in zip(vae.encoder.layers[2:], rest, strict=True):
        target.load_state_dict(source.state_dict())
    *rest, last = small.decoder.layers
    for target, source in zip(vae.decoder.layers, rest, strict=False):
        target.load_state_dict(source.state_dict())
    repeat = vae.decoder.layers[-2].weight
    repeat.zero_()
    repeat[:, :, 1, 1] = eye
    vae.decoder.layers[-1].load_state_dict(last.state_dict())
    return vae


@torch.no_grad()
def without_graft(vae: AutoencoderTiny) -> AutoencoderTiny:
    """The autoencoder at art resolution again: what `standard_vae` made its own from."""
    small = small_vae()
    first, _, *rest = vae.encoder.layers
    for target, source in zip(small.encoder.layers, (first, *rest), strict=True):
        target.load_state_dict(source.state_dict())
    *rest, _, last = vae.decoder.layers
    for target, source in zip(small.decoder.layers, [*rest[: len(small.decoder.layers) - 1], last], strict=True):
        target.load_state_dict(source.state_dict())
    return small


def unet() -> UNet2DConditionModel:
    """Three levels with attention on each; the pooled text joins the time embedding, for what is true of all cells."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENTS,
        out_channels=LATENTS,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D",) * 3,
        up_block_types=("CrossAttnUpBlock2D",) * 3,
        attention_head_dim=(1, 2, 2),  # by an old mistake of the library, this is the number of heads
        cross_attention_dim=CONTEXT,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
    )


def tokenizer(words: list[str]) -> CLIPTokenizer:
    """One token for each of the words; any other word falls to its letters."""
    start, end, suffix = "<|startoftext|>", "<|endoftext|>", "</w>"
    letters = list("abcdefghijklmnopqrstuvwxyz0123456789,.!?'-:;()&/_+\"#@*")
    learner = Tokenizer(BPE(end_of_word_suffix=suffix))
    learner.pre_tokenizer = WhitespaceSplit()
    trainer = BpeTrainer(
        vocab_size=10_000,
        special_tokens=[start, end, *letters, *(letter + suffix for letter in letters)],
        end_of_word_suffix=suffix,
        show_progress=False,
    )
    learner.train_from_iterator(words, trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    return CLIPTokenizer(vocab=learner.get_vocab(), merges=merges, unk_token=end, model_max_length=TOKENS)


def text_encoder(words: int, bos: int, eos: int) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=words,
            hidden_size=CONTEXT,
            intermediate_size=3 * CONTEXT,
            projection_dim=CONTEXT,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=bos,
            eos_token_id=eos,
            pad_token_id=eos,
        )
    )


def scheduler() -> DPMSolverMultistepScheduler:
    return DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # the stock pipeline insists; trailing spacing does not use it
    )
