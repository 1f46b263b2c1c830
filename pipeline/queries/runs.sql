-- every run of the folder, with its settings
SELECT kind, run, len(shards) AS shards, left(config_hash, 12) AS config_hash, config
FROM runs WHERE kind <> 'captions' OR $run IN ('', run) ORDER BY kind, run
