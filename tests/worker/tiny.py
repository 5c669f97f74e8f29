"""Diffusers text-to-image models with random weights, about a megabyte each: real classes, quick pictures of noise."""

from __future__ import annotations

import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    AutoencoderTiny,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    QwenImageEditPlusPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BatchFeature,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

_NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
_UNET = {
    "sample_size": 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (16, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 8,
}
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)


def build(folder: Path) -> Path:
    """Stable Diffusion 1. The same weights each time, as with the others."""
    torch.manual_seed(0)
    return _saved(
        folder,
        StableDiffusionPipeline(
            **_first_stable_diffusion(),
            scheduler=DPMSolverMultistepScheduler(prediction_type="v_prediction", **_NOISE),
        ),
    )


def build_two(folder: Path) -> Path:
    """Stable Diffusion 2: it predicts velocities, under another sampler."""
    torch.manual_seed(0)
    return _saved(
        folder,
        StableDiffusionPipeline(
            **_first_stable_diffusion(),
            scheduler=DDIMScheduler(prediction_type="v_prediction", clip_sample=False, **_NOISE),
        ),
    )


def build_xl(folder: Path) -> Path:
    """Stable Diffusion XL: two text encoders."""
    torch.manual_seed(0)
    return _saved(
        folder,
        StableDiffusionXLPipeline(
            vae=_smallest_vae(),
            text_encoder=CLIPTextModel(_text()),
            text_encoder_2=CLIPTextModelWithProjection(_text()),
            tokenizer=_tokenizer(),
            tokenizer_2=_tokenizer(),
            unet=UNet2DConditionModel(
                **_UNET,
                cross_attention_dim=64,
                attention_head_dim=(2, 4),
                use_linear_projection=True,
                addition_embed_type="text_time",
                addition_time_embed_dim=8,
                transformer_layers_per_block=(1, 1),
                projection_class_embeddings_input_dim=6 * 8 + 32,
            ),
            scheduler=EulerDiscreteScheduler(**_NOISE),
        ),
    )


def build_three(folder: Path) -> Path:
    """Stable Diffusion 3.5: three text encoders and a transformer."""
    torch.manual_seed(0)
    return _saved(
        folder,
        StableDiffusion3Pipeline(
            vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=CLIPTextModelWithProjection(_text()),
            tokenizer=_tokenizer(),
            text_encoder_2=CLIPTextModelWithProjection(_text()),
            tokenizer_2=_tokenizer(),
            text_encoder_3=_t5(64),
            tokenizer_3=_t5_tokenizer(),
            transformer=SD3Transformer2DModel(
                sample_size=32,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=8,
                num_attention_heads=2,
                joint_attention_dim=64,
                caption_projection_dim=16,
                pooled_projection_dim=64,
                dual_attention_layers=(0,),
                qk_norm="rms_norm",
            ),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        ),
    )


def build_flux(folder: Path) -> Path:
    """FLUX: a transformer, flow matching, and no negative prompt."""
    torch.manual_seed(0)
    return _saved(
        folder,
        FluxPipeline(
            vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=CLIPTextModel(_text()),
            tokenizer=_tokenizer(),
            text_encoder_2=_t5(32),
            tokenizer_2=_t5_tokenizer(),
            transformer=FluxTransformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=32,
                pooled_projection_dim=32,
                axes_dims_rope=(4, 4, 8),
                guidance_embeds=True,
            ),
            scheduler=_shifting(),
        ),
    )


def build_flux2(folder: Path) -> Path:
    """FLUX.2 in its smaller size, before it was distilled: it looks at references itself."""
    torch.manual_seed(0)
    return _saved(
        folder,
        Flux2KleinPipeline(
            vae=AutoencoderKLFlux2(
                block_out_channels=(4, 4, 4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=1
            ),
            # The pipeline reads the 27th of its layers.
            text_encoder=Qwen3ForCausalLM(_qwen3(layers=28)),
            tokenizer=_qwen_tokenizer(),
            transformer=Flux2Transformer2DModel(
                in_channels=16,
                num_layers=1,
                num_single_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                joint_attention_dim=3 * 16,
                timestep_guidance_channels=16,
                axes_dims_rope=(4, 4, 4, 4),
                guidance_embeds=False,
            ),
            scheduler=_shifting(),
        ),
    )


def build_z_image(folder: Path) -> Path:
    """Z-Image: pictures and text in one sequence."""
    torch.manual_seed(0)
    transformer = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[4, 4, 8],
        axes_lens=[1024, 64, 64],
    )
    # What fills the text up is learnt, and not even a number before.
    for padding in (transformer.x_pad_token, transformer.cap_pad_token):
        torch.nn.init.normal_(padding)
    return _saved(
        folder,
        ZImagePipeline(
            vae=_vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
            text_encoder=Qwen3Model(_qwen3(layers=2)),
            tokenizer=_qwen_tokenizer(),
            transformer=transformer,
            scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        ),
    )


def build_qwen_image(folder: Path) -> Path:
    """Qwen-Image: its guidance is true guidance, its autoencoder one of films."""
    torch.manual_seed(0)
    return _saved(folder, QwenImagePipeline(**_qwen_image()))


def qwen_image_edit() -> QwenImageEditPlusPipeline:
    """Qwen-Image-Edit, which draws after references. In memory alone: to save or load the part that reads pictures and
    text takes torchvision, which the worker's other families do without."""
    torch.manual_seed(0)
    parts = _qwen_image()
    return QwenImageEditPlusPipeline(**parts, processor=_PictureReader(parts["tokenizer"]))


def build_ip_adapter(folder: Path, model: Path) -> Path:
    """An IP-Adapter file for `build`'s model, with its encoder beside it."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_pretrained(model / "unet")
    encoder = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=16,
            projection_dim=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=32,
            patch_size=16,
        )
    )
    encoder.save_pretrained(folder / "image_encoder")
    width = unet.config.cross_attention_dim
    tensors = {
        "image_proj.proj.weight": torch.randn(4 * width, 16),
        "image_proj.proj.bias": torch.zeros(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    looking = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for index, name in enumerate(looking):
        size = unet.get_submodule(name.removesuffix(".processor")).to_q.out_features
        for half in ("k", "v"):
            tensors[f"ip_adapter.{2 * index + 1}.to_{half}_ip.weight"] = torch.randn(size, width)
    save_file(tensors, folder / "ip-adapter.safetensors")
    return folder / "ip-adapter.safetensors"


def save_lora(path: Path, pipeline: Any) -> Path:
    """A LoRA of rank 2 for the queries of the pipeline's denoiser, named as diffusers names them."""
    torch.manual_seed(0)
    part = "unet" if hasattr(pipeline, "unet") else "transformer"
    tensors = {}
    for name, module in getattr(pipeline, part).named_modules():
        if name.endswith("to_q"):
            tensors[f"{part}.{name}.lora_A.weight"] = torch.randn(2, module.in_features)
            tensors[f"{part}.{name}.lora_B.weight"] = torch.randn(module.out_features, 2)
    save_file(tensors, path)
    return path


def _saved(folder: Path, pipeline: Any) -> Path:
    pipeline.save_pretrained(folder)
    return folder


def _first_stable_diffusion() -> dict[str, Any]:
    return {
        "vae": _smallest_vae(),
        "text_encoder": CLIPTextModel(_text()),
        "tokenizer": _tokenizer(),
        "unet": UNet2DConditionModel(**_UNET, cross_attention_dim=32, attention_head_dim=2),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def _smallest_vae() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        num_encoder_blocks=(1, 1, 1, 1),
        num_decoder_blocks=(1, 1, 1, 1),
    )


def _vae(**settings: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=1,
        **settings,
    )


def _shifting() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def _text() -> CLIPTextConfig:
    tokenizer = _tokenizer()
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        projection_dim=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _tokenizer() -> CLIPTokenizer:
    letters = [*string.ascii_lowercase, *string.digits, ",", "-", "@"]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocab = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=[], model_max_length=16)


def _t5(width: int) -> T5EncoderModel:
    return T5EncoderModel(T5Config(vocab_size=32, d_model=width, d_ff=32, d_kv=8, num_layers=1, num_heads=4))


def _t5_tokenizer() -> T5Tokenizer:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in string.ascii_lowercase)]
    return T5Tokenizer(vocab=pieces, extra_ids=0)


_QWEN_WORDS = {word: index for index, word in enumerate(sorted(ByteLevel.alphabet()))}
_QWEN_SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def _qwen_tokenizer() -> Qwen2Tokenizer:
    """One token for each byte."""
    tokenizer = Qwen2Tokenizer(vocab=_QWEN_WORDS, merges=[], extra_special_tokens=list(_QWEN_SPECIAL))
    tokenizer.chat_template = _TEMPLATE
    return tokenizer


def _qwen3(*, layers: int) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(_qwen_tokenizer()),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
    )


def _qwen_image() -> dict[str, Any]:
    tokenizer = _qwen_tokenizer()
    number = tokenizer.convert_tokens_to_ids
    return {
        "vae": AutoencoderKLQwenImage(
            base_dim=4,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            latents_mean=[0.1] * 4,
            latents_std=[1.5] * 4,
        ),
        "text_encoder": Qwen2_5_VLForConditionalGeneration(
            Qwen2_5_VLConfig(
                text_config={
                    "vocab_size": len(tokenizer),
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 1,
                    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]},
                },
                vision_config={
                    "depth": 1,
                    "hidden_size": 16,
                    "intermediate_size": 16,
                    "num_heads": 2,
                    "out_hidden_size": 16,
                },
                image_token_id=number("<|image_pad|>"),
                video_token_id=number("<|video_pad|>"),
                vision_start_token_id=number("<|vision_start|>"),
                vision_end_token_id=number("<|vision_end|>"),
            )
        ),
        "tokenizer": tokenizer,
        "transformer": QwenImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            axes_dims_rope=(4, 4, 8),
        ),
        "scheduler": _shifting(),
    }


class _PictureReader:
    """Does for Qwen-Image-Edit what transformers' own processor does where torchvision is installed."""

    def __init__(self, tokenizer: Qwen2Tokenizer) -> None:
        self.tokenizer = tokenizer
        self._pictures = Qwen2VLImageProcessor()

    def __call__(self, *, text: list[str], images: Any, **options: Any) -> BatchFeature:
        seen = self._pictures(images=images, return_tensors="pt")
        places = [int(grid.prod()) // self._pictures.merge_size**2 for grid in seen["image_grid_thw"]]
        filled = [_filled(each, places) for each in text]
        return BatchFeature({**self.tokenizer(filled, **options), **seen})


def _filled(text: str, places: list[int]) -> str:
    """The text with as many places for each picture as the picture has tokens."""
    first, *rest = text.split("<|image_pad|>")
    return first + "".join("<|image_pad|>" * count + part for count, part in zip(places, rest, strict=True))


BUILDERS: dict[str, Callable[[Path], Path]] = {
    "sd15": build,
    "sd2": build_two,
    "sdxl": build_xl,
    "sd3": build_three,
    "flux": build_flux,
    "flux2": build_flux2,
    "z-image": build_z_image,
    "qwen-image": build_qwen_image,
}
