"""An OpenAI-compatible server that answers from labelled data. It is no model, and says so."""
