-- captions by their tokens, in steps of ten; CLIP reads the first 75
SELECT run, style, tokens_from, captions,
       round(captions / sum(captions) OVER (PARTITION BY run, style), 4) AS share
FROM (SELECT run, style, tokens // 10 * 10 AS tokens_from, count(*) AS captions
      FROM caption_texts WHERE tokens IS NOT NULL AND $run IN ('', run) GROUP BY ALL)
ORDER BY run, style, tokens_from
