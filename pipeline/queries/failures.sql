-- samples without captions or left out of a mix, by reason, with an example
SELECT step, run, reason, count(*) AS samples, min(shard || '/' || key) AS example
FROM (SELECT 'captions' AS step, run, shard, key, reason FROM captions WHERE $run IN ('', run)
      UNION ALL SELECT 'mix', run, source_shard, source_key, reason FROM mix WHERE $mix IN ('', run))
WHERE reason IS NOT NULL
GROUP BY ALL ORDER BY step, run, samples DESC, reason
