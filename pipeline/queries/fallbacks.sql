-- what the blend drew, and what stood in because that was missing or not ok
SELECT run AS mix, caption_drawn AS drawn, caption_source AS used, count(*) AS samples
FROM mix WHERE status = 'ok' AND caption_drawn <> caption_source AND $mix IN ('', run)
GROUP BY ALL ORDER BY mix, samples DESC, drawn, used
