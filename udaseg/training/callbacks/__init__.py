"""What runs beside training: metrics, previews, alarms, the best checkpoint, cost."""
