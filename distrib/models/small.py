"""A small residual network for small images (from 8 pixels), such as handwritten digits."""

from __future__ import annotations

from torch import Tensor, nn

from distrib.models.resnet import BasicBlock


class SmallCNN(nn.Module):
    """images_NCHW of 3 channels to logits_NK: three stages of one residual block, 24, 48 and 96 channels."""

    def __init__(self, num_classes: int, dropout: float = 0.0, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width),
                                  nn.ReLU(inplace=True))
        self.layer1 = _block(width, width, 2)
        self.layer2 = _block(width, 2 * width, 2)
        self.layer3 = _block(2 * width, 4 * width, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(4 * width, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images_NCHW: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.stem(images_NCHW))))
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))  # type: ignore[no-any-return]


def _block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return BasicBlock(inputs, outputs, stride, shortcut)


def small_cnn(num_classes: int, dropout: float = 0.0) -> SmallCNN:
    return SmallCNN(num_classes, dropout)
