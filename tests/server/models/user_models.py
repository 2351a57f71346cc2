"""Models as users write them, for tests of cutting: a file in a directory of its own, imported by name from the current directory."""

from __future__ import annotations

SOURCE = '''
import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """As in torchvision: one ReLU for both places, in place, and a sum in place."""

    def __init__(self, channels_in, channels_out, stride, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = norm(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = norm(channels_out)
        self.downsample = None
        if stride != 1 or channels_in != channels_out:
            self.downsample = nn.Sequential(nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), norm(channels_out))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, channels, num_classes, norm):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 4, 3, 1, 1, bias=False)
        self.bn1 = norm(4)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1 = nn.Sequential(Block(4, 4, 1, norm), Block(4, 4, 1, norm))
        self.layer2 = nn.Sequential(Block(4, 8, 2, norm), Block(8, 8, 1, norm))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(8, num_classes)
        self.unused = nn.Linear(2, 2)

    def forward(self, x):
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer2(self.layer1(x))
        return self.fc(torch.flatten(self.avgpool(x), 1))


def resnet(input_shape, num_classes, norm="group"):
    norms = {"group": lambda channels: nn.GroupNorm(2, channels), "moving": nn.BatchNorm2d, "frozen": nn.BatchNorm2d}
    model = ResNet(input_shape[0], num_classes, norms[norm])
    return model.eval() if norm == "frozen" else model


def sequential(width=4, classes=10):
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.GroupNorm(1, width), nn.ReLU(),
        nn.Sequential(nn.Conv2d(width, 2, 3, stride=2, padding=1), nn.Dropout(0.5), nn.ReLU()),
        nn.Flatten(), nn.Linear(32, classes),
    )


class Transformer(nn.Module):
    """A class token widened to the batch's size, positions, a constant made in forward, a buffer outside the state."""

    def __init__(self, num_classes):
        super().__init__()
        self.patch = nn.Conv2d(1, 8, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, 8))
        self.positions = nn.Parameter(torch.randn(1, 5, 8))
        self.register_buffer("scale", torch.tensor(1.5), persistent=False)
        self.blocks = nn.ModuleList([nn.TransformerEncoderLayer(8, 2, 8, batch_first=True) for _ in range(2)])
        self.head = nn.Linear(8, num_classes)

    def forward(self, x, mask=None):
        n, c, h, w = x.shape
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(n, -1, -1), x], 1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head((x[:, 0] * self.scale).reshape(n, -1)) * torch.tensor(2.0)


class Plain(nn.Module):
    """Two linear layers, and what a test puts around them."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Flatten()
        self.first = nn.Linear(64, 6)
        self.second = nn.Linear(6, 6)
        self.last = nn.Linear(6, 10)

    def forward(self, x):
        return self.last(self.second(self.first(self.flat(x)).relu()).relu())


class Skip(Plain):
    def forward(self, x):
        a = self.first(self.flat(x))
        return self.last(self.second(a).relu() + a)


class FunctionalDropout(Plain):
    def forward(self, x):
        x = F.dropout(self.first(self.flat(x)), 0.5, self.training)
        return self.last(F.dropout(self.second(x), p=0.5, training=self.training))


class Branching(Plain):
    def forward(self, x):
        x = self.first(self.flat(x))
        if x.sum() > 0:
            x = -x
        return self.last(x)


class Gate(nn.Module):
    def forward(self, x):
        if x.max() > 1e9:
            return x * 0
        return x


class Halves(nn.Module):
    def forward(self, x):
        if x.shape[1] > 3:
            return x * 0.5
        return x


class Noisy(nn.Module):
    def forward(self, x):
        return x + torch.randn_like(x) if self.training else x


class Around(Plain):
    """A submodule before the second layer that cannot be traced."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.last(self.second(self.inner(self.first(self.flat(x)))))


def gated():
    return Around(Gate())


def halved():
    return Around(Halves())


def noisy():
    return Around(Noisy())


class Trains(Plain):
    def forward(self, x):
        x = self.first(self.flat(x))
        if self.training:
            x = x * 2
        return self.last(x)


class Tied(Plain):
    def __init__(self):
        super().__init__()
        self.third = nn.Linear(6, 6)
        self.third.weight = self.second.weight

    def forward(self, x):
        return self.last(self.third(self.second(self.first(self.flat(x)))))


class Twice(Plain):
    def forward(self, x):
        return self.last(self.second(self.second(self.first(self.flat(x)))))


class Recurrent(Plain):
    def __init__(self):
        super().__init__()
        self.recurrent = nn.GRU(8, 6, batch_first=True)

    def forward(self, x):
        states, _ = self.recurrent(x[:, 0])
        return self.last(self.second(states[:, -1]))


class FrozenFirst(Plain):
    def __init__(self):
        super().__init__()
        self.first.requires_grad_(False)


class Narrow(Plain):
    def __init__(self):
        super().__init__()
        self.first.to(torch.bfloat16)

    def forward(self, x):
        x = self.first(self.flat(x).to(torch.bfloat16))
        return self.last(self.second(x.float()))


class Random(Plain):
    def forward(self, x):
        return super().forward(x) + torch.rand(1)


class TwoInputs(Plain):
    def forward(self, x, mask):
        return super().forward(x)


class Pair(Plain):
    def forward(self, x):
        return super().forward(x), x


def volumes():
    return nn.Sequential(nn.Conv3d(1, 2, 3, padding=1), nn.Flatten(), nn.Linear(64, 10))


def failing():
    raise ValueError("no weights on disk")


def number():
    return 7


def wide_head(cut, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(cut[0] * cut[1] * cut[2], 5), nn.ReLU(), nn.Linear(5, num_classes))


def narrow_head(cut, num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(cut[0] * cut[1] * cut[2], 3))
'''
