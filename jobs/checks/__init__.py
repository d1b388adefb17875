"""What jobs/doctor.py looks at: one module per subject, standard library alone until a check needs more."""
