"""Training and calibration data: files, folders and hub data sets made into rows."""
