"""The methods: objectives, teacher, mixing, and the contrastive regularizers."""
