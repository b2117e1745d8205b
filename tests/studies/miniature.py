"""A model of a few thousand numbers that reads and writes what `tiny` does, untrained."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tether.language.reviews.prompts import load_reviews


def save_miniature(folder):
    from tether.language.pretraining.tiny_recipe import train_tokenizer

    tokenizer = train_tokenizer([r.text for r in load_reviews().train[:200]], 400)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
