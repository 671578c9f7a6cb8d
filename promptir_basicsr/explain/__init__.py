"""What `basicsr explain` measures, draws and writes."""

from promptir_basicsr.explain.prompted import PromptedNet, fixed
from promptir_basicsr.explain.run import Settings, explain

__all__ = ['PromptedNet', 'Settings', 'explain', 'fixed']
