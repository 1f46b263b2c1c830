-- which source each training sample's caption comes from
SELECT run AS mix, source, samples,
       round(samples / sum(samples) OVER (PARTITION BY run), 4) AS share
FROM (SELECT run, caption_source AS source, count(*) AS samples
      FROM mix WHERE status = 'ok' AND $mix IN ('', run) GROUP BY ALL)
ORDER BY mix, samples DESC, source
