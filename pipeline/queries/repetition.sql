-- captions caught in a loop, and captions that many images share, per run and style
SELECT run, style, count(*) AS captions,
       round(avg((status = 'repetitive')::INT), 4) AS share_repetitive,
       round(1 - count(DISTINCT text) / count(*), 4) AS share_not_unique,
       CASE WHEN max(same) > 1 THEN mode(text) END AS commonest,
       max(same) AS commonest_count
FROM (SELECT *, count(*) OVER (PARTITION BY run, style, text) AS same
      FROM caption_texts WHERE text <> '' AND $run IN ('', run))
GROUP BY ALL ORDER BY ALL
