"""A small transformer, for whatever has hidden states to take a loss of."""

from torch import Tensor, nn


class Transformer(nn.Module):
    """Tokens to hidden states; the embedding serves as the output layer too, as in GPT-2."""

    def __init__(self, vocab_size: int, context: int, width: int, heads: int, layers: int):
        super().__init__()
        self.token = nn.Embedding(vocab_size, width)
        self.position = nn.Embedding(context, width)
        layer = nn.TransformerEncoderLayer(
            width,
            heads,
            4 * width,
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
        )
        self.layers = nn.TransformerEncoder(
            layer, layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        mask = nn.Transformer.generate_square_subsequent_mask(context)
        self.register_buffer("mask", mask, persistent=False)
        for embedding in (self.token, self.position):
            nn.init.normal_(embedding.weight, std=0.02)  # a first guess that is nearly uniform

    def forward(self, tokens: Tensor) -> Tensor:  # [batch, context] -> [batch * context, width]
        hidden = self.token(tokens) + self.position.weight
        return self.layers(hidden, mask=self.mask, is_causal=True).flatten(0, 1)
