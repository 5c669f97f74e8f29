"""The denoiser with its text encoder, as it is trained, and what its errors are measured by."""

from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from handler.builtin import networks
from handler.builtin.captions import words


class Denoiser(nn.Module):
    """UNet and text encoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.words = networks.tokenizer(words())
        self.text = networks.text_encoder(len(self.words), self.words.bos_token_id, self.words.eos_token_id)
        self.unet = networks.unet()

    def forward(self, noisy: Tensor, times: Tensor, tokens: Tensor) -> Tensor:
        """The velocity, shaped as the noisy latents; tokens are (pictures, 77)."""
        states = self.text(tokens).last_hidden_state
        guess: Tensor = self.unet(noisy, times, encoder_hidden_states=states).sample
        return guess.float()


def tokens_of(words: Any, prompts: list[str]) -> Tensor:
    """The prompts as the tokenizer's numbers, (prompts, 77)."""
    tokens: Tensor = words(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return tokens


def squared_errors(model: Denoiser, curve: Tensor, latents: Tensor, tokens: Tensor, times: Tensor) -> Tensor:
    """For each number of the latents; `curve` is the scheduler's `alphas_cumprod`."""
    noise = torch.randn_like(latents)
    signal = curve[times].sqrt().view(-1, 1, 1, 1)
    dark = (1 - curve[times]).sqrt().view(-1, 1, 1, 1)
    with networks.autocast(latents.device):
        guess = model(signal * latents + dark * noise, times, tokens)
    errors: Tensor = (guess - (signal * noise - dark * latents)).square()
    return errors


def from_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """An exported folder as the checkpoints of the autoencoder and of the denoiser; new words get new embeddings."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    model = Denoiser()
    model.unet.load_state_dict(pipeline.unet.state_dict())
    weights = pipeline.text_encoder.state_dict()
    (embedding,) = [name for name in weights if name.endswith("token_embedding.weight")]
    mixed = model.text.state_dict()[embedding].clone()
    old, new = pipeline.tokenizer.get_vocab(), model.words.get_vocab()
    for word, row in new.items():
        if word in old:
            mixed[row] = weights[embedding][old[word]]
    model.text.load_state_dict(weights | {embedding: mixed})
    spread = 1 / pipeline.vae.config.scaling_factor
    content = {"model": copies(model), "average": copies(model), "spread": spread, "samples": 0, "seconds": 0.0}
    return {"vae": networks.without_graft(pipeline.vae).state_dict()}, content


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}
