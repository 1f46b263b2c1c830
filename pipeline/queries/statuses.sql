-- what became of captions: only `ok` is blended; `truncated` stopped at the length limit
SELECT run, style, status, captions,
       round(captions / sum(captions) OVER (PARTITION BY run, style), 4) AS share
FROM (SELECT run, style, status, count(*) AS captions
      FROM caption_texts WHERE $run IN ('', run) GROUP BY ALL)
ORDER BY run, style, captions DESC, status
