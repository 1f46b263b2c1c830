-- how many samples were read, captioned and mixed, per run
SELECT step, run, samples, ok, round(ok / samples, 4) AS share
FROM (SELECT 1 AS nr, 'captions' AS step, run, count(*) AS samples,
             count(*) FILTER (status = 'ok') AS ok
      FROM captions WHERE $run IN ('', run) GROUP BY ALL
      UNION ALL SELECT 2, 'keep', run, count(*), count(*) FILTER (keep)
      FROM keep WHERE $keep IN ('', run) GROUP BY ALL
      UNION ALL SELECT 3, 'mix', run, count(*), count(*) FILTER (status = 'ok')
      FROM mix WHERE $mix IN ('', run) GROUP BY ALL)
ORDER BY nr, run
