"""Training and calibration data: reads files, folders and Hub datasets as rows."""
