"""The words that options take, for commands that check them and for completion, which must not import torch."""

from __future__ import annotations

ROUTES = ("image", "batch")
ROUTERS = ("fused", "gate", "loss", "gradient", "fisher", "paper")
EVIDENCE = ("gate", "fisher", "gradient")
EYES = ("none", "first", "subnetwork", "pretrained")
SCORES = ("gradient-weight", "gradient", "last-batch")
IF_KNOWN = ("skip", "refine", "new")
BOUNDARIES = ("labels", "images")
AUGMENT = ("none", "light", "strong")
DEVICES = ("auto", "cpu", "cuda", "mps")
FORMATS = ("csv", "md")
ONLY = ("wrong", "unsure", "unknown")
LABELS = ("auto", "folder", "ignore")

# Suggestions: more are possible.
ARCHS = ("mlp:500,500", "cnn:32,64,128", "resnet9", "lite0", "resnet18", "resnet34", "resnet50", "mobilenet_v2")
BACKBONES = (
    "none",
    "lite0",
    "fixed",
    "resnet18",
    "resnet50",
    "convnext_tiny",
    "efficientnet_b0",
    "vit_b_16",
)
