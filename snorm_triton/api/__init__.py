"""What users call, a file for each constraint."""
