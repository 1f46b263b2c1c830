-- the twenty shards whose samples fail most often, per caption run
SELECT run, shard, count(*) AS samples, round(avg((status <> 'ok')::INT), 4) AS share_failed,
       mode(reason) AS commonest_reason
FROM captions WHERE $run IN ('', run)
GROUP BY run, shard HAVING max(status <> 'ok')
QUALIFY row_number() OVER (PARTITION BY run ORDER BY share_failed DESC, shard) <= 20
ORDER BY run, share_failed DESC, shard
