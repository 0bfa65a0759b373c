"""What only notebooks use: parameters, the forecast of time and memory, plots, widgets."""
