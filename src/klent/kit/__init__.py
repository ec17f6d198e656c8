"""What every package may use and none owns: text, tables of metrics, statistics, drawings, seeds."""
