"""The localizer: a frozen vision-language backbone, learned prompts, and a map maker."""

from xaiclip.lazy import defer

# hundreds of models and what training needs; the localizer takes one network and its tokenizer
defer("open_clip", "timm", "torchvision", "torchvision.ops", "torchvision.models")
