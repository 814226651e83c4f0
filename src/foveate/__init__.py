"""foveate: fewer visual tokens for any Hugging Face vision-language model."""
