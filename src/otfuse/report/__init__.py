"""What a person sees: tables for the terminal, the drawn flow graph, the demo's figure."""
