-- twenty samples with all that is said of them, the same ones every time
SELECT run, shard || '/' || key AS sample, caption, caption_short AS short, caption_long AS long
FROM captions WHERE status = 'ok' AND $run IN ('', run)
QUALIFY row_number() OVER (PARTITION BY run ORDER BY md5(uid)) <= 20
ORDER BY run, md5(uid)
