-- caption lengths in words and tokens, per run and style
SELECT run, style, count(*) AS captions,
       round(avg(words), 1) AS words_mean, median(words) AS words_median,
       quantile_cont(words, 0.95) AS words_p95, max(words) AS words_max,
       round(avg(tokens), 1) AS tokens_mean, median(tokens) AS tokens_median,
       quantile_cont(tokens, 0.95) AS tokens_p95, max(tokens) AS tokens_max,
       round(avg((tokens > 75)::INT), 3) AS share_over_75_tokens
FROM (SELECT *, len(regexp_extract_all(text, '\S+')) AS words
      FROM caption_texts WHERE text <> '' AND $run IN ('', run))
GROUP BY ALL ORDER BY ALL
