"""The report: one page that shows a data folder, from its parquet files to what a browser draws."""
