"""Text to ids and back. A tokenizer has `encode`, `decode`, `eos_id`, `eos_ids`,
`pad_id` and `vocab_size`; nothing else is asked of one."""

from tis_jax.models.tokenizers.bpe import BytePairTokenizer
from tis_jax.models.tokenizers.characters import CharacterTokenizer

Tokenizer = BytePairTokenizer | CharacterTokenizer

__all__ = ["BytePairTokenizer", "CharacterTokenizer", "Tokenizer"]
