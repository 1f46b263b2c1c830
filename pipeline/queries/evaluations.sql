-- what make evaluate-captions measured, per run
SELECT evaluation, metric,
       round(max(value) FILTER (style = 'short'), 4) AS short,
       round(max(value) FILTER (style = 'long'), 4) AS long,
       round(max(value) FILTER (style = 'original'), 4) AS original,
       round(max(value) FILTER (style = 'reference'), 4) AS reference
FROM evaluations WHERE item IS NULL AND $run IN ('', run)
GROUP BY ALL ORDER BY ALL
