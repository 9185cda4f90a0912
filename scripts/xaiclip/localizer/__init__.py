"""The localizer: a frozen vision-language backbone, learned prompts, and a map maker."""
