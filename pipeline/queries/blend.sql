-- realised blend: which source each training sample's caption comes from
SELECT run AS mix, caption_source AS source, count(*) AS samples,
       round(count(*) / sum(count(*)) OVER (PARTITION BY run), 4) AS share
FROM mix WHERE status = 'ok' AND $mix IN ('', run)
GROUP BY ALL ORDER BY mix, samples DESC, source
