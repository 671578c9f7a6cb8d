"""Explanation of prompts: measurements, figures and report of `basicsr explain`."""

from promptir_basicsr.explain.prompted import PromptedNet, fixed
from promptir_basicsr.explain.run import Settings, explain

__all__ = ['PromptedNet', 'Settings', 'explain', 'fixed']
