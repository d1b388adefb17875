"""The page of `jobs/report.py`: what is read of a run, how it is drawn, and the template that holds it together."""
