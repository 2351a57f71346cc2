"""Models of tokens as users write them, for tests of cutting: a file in a directory of its own, imported by name from the current directory."""

from __future__ import annotations

SOURCE = '''
import torch
import torch.nn.functional as F
from torch import nn


class Attention(nn.Module):
    """As in nanoGPT: sizes of the data unpacked, a triangle in a buffer cut to length."""

    def __init__(self, width, length):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("triangle", torch.tril(torch.ones(length, length)).view(1, 1, length, length))

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = (part.view(B, T, 2, C // 2).transpose(1, 2) for part in self.qkv(x).split(C, dim=2))
        weights = (q @ k.transpose(-2, -1)) * k.size(-1) ** -0.5
        weights = F.softmax(weights.masked_fill(self.triangle[:, :, :T, :T] == 0, float("-inf")), dim=-1)
        return self.out((weights @ v).transpose(1, 2).contiguous().view(B, T, C))


class Block(nn.Module):
    def __init__(self, width, length):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, length)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class Language(nn.Module):
    """Positions are made in forward from the length and the device of the data."""

    def __init__(self, vocabulary_size, length, tied=False):
        super().__init__()
        self.length = length
        self.wte = nn.Embedding(vocabulary_size, 8)
        self.wpe = nn.Embedding(length, 8)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.ModuleList([Block(8, length) for _ in range(2)])
        self.norm = nn.LayerNorm(8)
        self.unembed = nn.Linear(8, vocabulary_size, bias=False)
        if tied:
            self.unembed.weight = self.wte.weight

    def forward(self, ids, targets=None):
        b, t = ids.size()
        assert t <= self.length, "too long"
        x = self.drop(self.wte(ids) + self.wpe(torch.arange(0, t, dtype=torch.long, device=ids.device)))
        for block in self.blocks:
            x = block(x)
        return self.unembed(self.norm(x))


class Encoder(nn.Module):
    """Two of torch's layers and the mean over tokens; the mask is needed on both sides of a cut."""

    def __init__(self, vocabulary_size, outputs):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, 8, padding_idx=0)
        self.first = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.second = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.last = nn.Linear(8, outputs)

    def forward(self, ids, token_types=None, attention_mask=None):
        hidden = attention_mask == 0
        x = self.first(self.embedding(ids), src_key_padding_mask=hidden)
        x = self.second(x, src_key_padding_mask=hidden)
        counted = attention_mask.unsqueeze(-1).to(x.dtype)
        return self.last((x * counted).sum(1) / counted.sum(1))


class Bag(nn.Module):
    """Sees padding as a token like any other; its activations have no places."""

    def __init__(self, vocabulary_size, outputs, places):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary_size, 8)
        self.pooled = nn.Sequential(nn.Flatten(), nn.Linear(8 * places, 6))
        self.last = nn.Linear(6, outputs)

    def forward(self, ids):
        return self.last(F.relu(self.pooled(self.embedding(ids))))


class Kinds(nn.Module):
    """The first token says what kind of sequence it is, and there are but three kinds."""

    def __init__(self, vocabulary_size):
        super().__init__()
        self.tokens, self.kinds = nn.Embedding(vocabulary_size, 8), nn.Embedding(3, 8)

    def forward(self, ids):
        return self.tokens(ids) + self.kinds(ids[:, :1] - 3)


def typed(num_classes, vocabulary_size, input_shape):
    model = Bag(vocabulary_size, num_classes, input_shape[0])
    model.embedding = Kinds(vocabulary_size)
    return model


def language(vocabulary_size, input_shape, tied=False):
    return Language(vocabulary_size, input_shape[0], tied)


def frozen_and_tied(vocabulary_size, input_shape):
    model = Language(vocabulary_size, input_shape[0], True)
    model.wte.weight.requires_grad_(False)
    return model


def encoder(num_classes, vocabulary_size):
    return Encoder(vocabulary_size, num_classes)


def bag(num_classes, vocabulary_size, input_shape):
    return Bag(vocabulary_size, num_classes, input_shape[0])


def narrow(num_classes, input_shape):
    return Bag(20, num_classes, input_shape[0])


def masked_head(cut, num_classes):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(cut[-1], num_classes)

        def forward(self, z, mask):
            return self.linear((z * mask.unsqueeze(-1)).sum(1))

    return Head()
'''
