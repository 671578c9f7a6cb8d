"""The prompt-aware model and its helpers."""

from promptir_basicsr.models.prompt_model import PromptModel

__all__ = ['PromptModel']
