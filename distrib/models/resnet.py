"""Residual networks: He et al., "Deep Residual Learning", 2016, with the stride on the 3x3 convolution (v1.5).

Parameter names equal torchvision's, so its weights (as safetensors) load by name.
"""

from __future__ import annotations

from torch import Tensor, nn


def _conv3x3(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(inputs, width, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _conv3x3(width, width)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = downsample

    def forward(self, x_NCHW: Tensor) -> Tensor:
        shortcut = x_NCHW if self.downsample is None else self.downsample(x_NCHW)
        out = self.relu(self.bn1(self.conv1(x_NCHW)))
        return self.relu(self.bn2(self.conv2(out)).add_(shortcut))  # type: ignore[no-any-return]


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(self, inputs: int, width: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv3x3(width, width, stride)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x_NCHW: Tensor) -> Tensor:
        shortcut = x_NCHW if self.downsample is None else self.downsample(x_NCHW)
        out = self.relu(self.bn1(self.conv1(x_NCHW)))
        out = self.relu(self.bn2(self.conv2(out)))
        return self.relu(self.bn3(self.conv3(out)).add_(shortcut))  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """images_NCHW of 3 channels, any size from 32 pixels, to logits_NK."""

    def __init__(self, block: type[BasicBlock | Bottleneck], depths: tuple[int, int, int, int], num_classes: int,
                 dropout: float = 0.0) -> None:
        super().__init__()
        self._width = 64
        self.conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        self.layer1 = self._stage(block, 64, depths[0], 1)
        self.layer2 = self._stage(block, 128, depths[1], 2)
        self.layer3 = self._stage(block, 256, depths[2], 2)
        self.layer4 = self._stage(block, 512, depths[3], 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(512 * block.expansion, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _stage(self, block: type[BasicBlock | Bottleneck], width: int, depth: int, stride: int) -> nn.Sequential:
        outputs = width * block.expansion
        blocks: list[nn.Module] = []
        for index in range(depth):
            first_stride = stride if index == 0 else 1
            shortcut = None
            if first_stride != 1 or self._width != outputs:
                shortcut = nn.Sequential(nn.Conv2d(self._width, outputs, 1, first_stride, bias=False),
                                         nn.BatchNorm2d(outputs))
            blocks.append(block(self._width, width, first_stride, shortcut))
            self._width = outputs
        return nn.Sequential(*blocks)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images_NCHW))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]


def resnet18(num_classes: int, dropout: float = 0.0) -> ResNet:
    return ResNet(BasicBlock, (2, 2, 2, 2), num_classes, dropout)


def resnet34(num_classes: int, dropout: float = 0.0) -> ResNet:
    return ResNet(BasicBlock, (3, 4, 6, 3), num_classes, dropout)


def resnet50(num_classes: int, dropout: float = 0.0) -> ResNet:
    return ResNet(Bottleneck, (3, 4, 6, 3), num_classes, dropout)
