-- the five commonest first two words, per run and style: a captioner's habits
SELECT run, style, opening, captions,
       round(captions / sum(captions) OVER (PARTITION BY run, style), 3) AS share
FROM (SELECT run, style, opening, count(*) AS captions
      FROM (SELECT run, style,
                   array_to_string(regexp_extract_all(lower(text), '\S+')[1:2], ' ') AS opening
            FROM caption_texts WHERE text <> '' AND $run IN ('', run))
      GROUP BY ALL)
QUALIFY row_number() OVER (PARTITION BY run, style ORDER BY captions DESC, opening) <= 5
ORDER BY run, style, captions DESC, opening
