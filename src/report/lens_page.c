/* The lens page: style and script as text, data as JSON, the picture as a PNG inside. Nothing comes from outside; all
 * text reaches the page through textContent, so tokens cannot become markup. */
#include "report/lens_page.h"

#include <cairo.h>
#include <string.h>

static const char kStyle[] =
    ":root{color-scheme:light dark;--bg:#fff;--ink:#1d1f24;--soft:#646a76;--line:#d9dce3;--panel:#f5f6f8;\n"
    "--heat:178,24,43;--mark:#e8b400;--sel:#fff2c4}\n"
    "@media(prefers-color-scheme:dark){:root{--bg:#16181d;--ink:#e7e9ee;--soft:#9aa1ae;--line:#343944;\n"
    "--panel:#1f2229;--heat:214,96,77;--mark:#ffd34d;--sel:#463c17}}\n"
    "*{box-sizing:border-box}\n"
    "body{margin:0;background:var(--bg);color:var(--ink);font:14px/1.4 system-ui,'DejaVu Sans',sans-serif}\n"
    "header{padding:14px 20px 10px;border-bottom:1px solid var(--line)}\n"
    "h1{font-size:19px;margin:0}header p{margin:2px 0 0;color:var(--soft)}\n"
    "main{display:flex;gap:18px;padding:14px 20px;align-items:flex-start}\n"
    "#left{flex:0 0 348px;position:sticky;top:14px}\n"
    "#stage{position:relative;width:348px;background:var(--panel)}\n"
    "#stage img{display:block;width:100%}\n"
    "#stage.pale img{filter:grayscale(1) contrast(.45) brightness(1.25)}#stage.plain svg{opacity:0}\n"
    "#stage.plain svg:hover{opacity:1}#stage.plain svg:hover rect:not(.on){fill:none!important;pointer-events:all}\n"
    "#caption{display:flex;justify-content:space-between;gap:8px;margin:5px 0 0;color:var(--soft);font-size:12px}\n"
    "#stage svg{position:absolute;inset:0;width:100%;height:100%}\n"
    "#stage rect{stroke:transparent;cursor:pointer}\n"
    "#stage rect.on{stroke:var(--mark);stroke-width:2.5;vector-effect:non-scaling-stroke}\n"
    "#bar{display:flex;flex-wrap:wrap;gap:6px;margin:0 0 10px}\n"
    "button{font:inherit;padding:2px 10px;border:1px solid var(--line);border-radius:4px;background:var(--panel);\n"
    "color:var(--ink);cursor:pointer}\n"
    "button.on{background:var(--ink);color:var(--bg)}\n"
    "#detail{margin-top:10px;padding:10px 12px;background:var(--panel);border-radius:6px;min-height:150px}\n"
    "#detail h2{font-size:13px;margin:0 0 6px}#detail .n{color:var(--soft)}\n"
    ".w{display:grid;grid-template-columns:120px 1fr 56px;gap:8px;align-items:center}\n"
    ".w b{font-weight:500;overflow:hidden;text-overflow:ellipsis;white-space:pre}\n"
    ".w i{height:9px;border-radius:2px;background:rgb(var(--heat))}\n"
    ".w span{text-align:right;color:var(--soft);font-variant-numeric:tabular-nums}\n"
    "#right{flex:1 1 0;min-width:0}\n"
    "#scroll{overflow:auto;max-height:calc(100vh - 150px);border:1px solid var(--line)}\n"
    "table{border-collapse:separate;border-spacing:0;font-size:12px}\n"
    "th,td{padding:2px 7px;white-space:pre;text-align:left;border-right:1px solid var(--line);\n"
    "border-bottom:1px solid var(--line);max-width:96px;overflow:hidden;text-overflow:ellipsis}\n"
    "thead th{position:sticky;top:0;background:var(--panel);z-index:2;cursor:pointer;font-weight:500}\n"
    "thead th.on{box-shadow:inset 0 -3px var(--mark)}\n"
    "tbody th{position:sticky;left:0;background:var(--panel);z-index:1;font-weight:400;max-width:150px}\n"
    "thead th:first-child{left:0;z-index:3;cursor:default}\n"
    "tr.on th{background:var(--sel)}tr.on td{border-bottom-color:var(--mark);border-top:1px solid var(--mark)}\n"
    "tr.constraint th{font-weight:700}tr.template th,tr.bos th{color:var(--soft)}\n"
    "td.at{outline:2px solid var(--mark);outline-offset:-2px}\n"
    "#roles{margin-top:14px}#roles table td,#roles table th{position:static;text-align:right;max-width:none}\n"
    "#roles h2{font-size:14px;margin:0 0 6px}#roles div{overflow:auto}\n"
    "@media(max-width:900px){main{flex-direction:column}#left{position:static;flex-basis:auto;max-width:100%}}\n";

static const char kBody[] =
    "<header><h1 id='q'></h1><p id='about'></p></header>\n"
    "<main><section id='left'><div id='stage'></div><div id='caption'><span></span></div><div "
    "id='detail'></div></section>\n"
    "<section id='right'><div id='bar'></div><div id='scroll'><table id='t'></table></div>\n"
    "<div id='roles'></div></section></main>\n";

static const char kScript[] =
    "'use strict';\n"
    "const D=JSON.parse(document.getElementById('data').textContent);\n"
    "const $=id=>document.getElementById(id);\n"
    "const make=(tag,text,parent,cls)=>{const e=document.createElement(tag);\n"
    "  if(text!==undefined)e.textContent=text;if(cls)e.className=cls;if(parent)parent.append(e);return e};\n"
    "const word=id=>{const s=D.tokens[id];return "
    "s===undefined?'#'+id:s.trim()===''?(s?'\\u2423':'\\u2205'):s.trim()};\n"
    "const E=D.embeddings,cols=(E?['E']:[]).concat(D.layers),off=E?1:0;\n"
    "const cellOf=(r,c)=>E&&c===0?E.cells[r]:D.cells[r][c-off];\n"
    "const rankOf=(r,c)=>E&&c===0?(E.word_rank||[])[r]:D.word_rank?D.word_rank[r][c-off]:null;\n"
    "const isP=c=>!(E&&c===0);\n"
    "let mode='p',layer=cols.length-1,locked=null,show='all',pale=true;\n"
    "const V=D.rows.map((_,r)=>cols.map((_,c)=>{const x=cellOf(r,c);return x.length?x[1]:null}));\n"
    "const strength=(r,c)=>{if(mode==='rank'){const k=rankOf(r,c);return k?1/(1+Math.log2(k)):0}\n"
    "  if(!isP(c))return 0;return V[r][c]===null?0:Math.exp(V[r][c])};\n"
    "const rowName=r=>{const x=D.rows[r];return x.patch?'patch '+x.patch.join(','):x.role==='image'?'picture':\n"
    "  x.token.trim()===''?'\\u2423':x.token.replace('<0x0A>','\\u21b5').trim()};\n"
    "$('q').textContent=D.question;\n"
    "$('about').textContent='What each state would say: the model\\u2019s own final norm and head at every layer. '+\n"
    "  (D.provenance.model||'')+(D.word?'. Followed word: '+D.word.text+(D.word.first_token_only?' (first "
    "token)':''):'');\n"
    "const bar=$('bar'),group=(list,get,set)=>list.forEach(([v,label])=>{const b=make('button',label,bar);\n"
    "  b.onclick=()=>{set(v);paint()};b.dataset.v=v;b.test=()=>get()===v});\n"
    "group([['p','likeliest word']].concat(D.word_rank?[['rank','rank of '+D.word.text]]:[]),()=>mode,v=>mode=v);\n"
    "const hasPic=D.rows.some(x=>x.role==='image'),hasText=D.rows.some(x=>x.role!=='image');\n"
    "if(hasPic&&hasText)group([['all','all rows'],['image','picture'],['text','text']],()=>show,v=>show=v);\n"
    "const table=$('t'),head=make('tr',undefined,make('thead',undefined,table)),trs=[],tds=[],ths=[];\n"
    "make('th','row \\u00b7 token',head);\n"
    "cols.forEach((c,i)=>{const h=make('th',c,head);h.title=c==='E'?'against the input embeddings':\n"
    "  'layer '+c+': click to paint the picture with it';h.onclick=()=>{layer=i;paint()};ths.push(h)});\n"
    "const body=make('tbody',undefined,table);\n"
    "D.rows.forEach((x,r)=>{const tr=make('tr',undefined,body,x.role);make('th',x.row+' \\u00b7 '+rowName(r),tr);\n"
    "  tds.push(cols.map((_,c)=>{const td=make('td',undefined,tr);td.dataset.c=c;return td}));\n"
    "  tr.dataset.r=r;trs.push(tr)});\n"
    "const rects={};\n"
    "if(window.PICTURE){const img=make('img',undefined,$('stage'));img.src=window.PICTURE;img.alt='what the model "
    "saw';\n"
    "  if(D.picture&&D.picture.grid[0]){const[h,w]=D.picture.grid,ns='http://www.w3.org/2000/svg';\n"
    "    const svg=document.createElementNS(ns,'svg');svg.setAttribute('viewBox','0 0 '+w+' '+h);\n"
    "    svg.setAttribute('preserveAspectRatio','none');$('stage').append(svg);\n"
    "    D.rows.forEach((x,r)=>{if(!x.patch)return;const q=document.createElementNS(ns,'rect');\n"
    "      q.setAttribute('x',x.patch[1]);q.setAttribute('y',x.patch[0]);q.setAttribute('width',1);\n"
    "      q.setAttribute('height',1);q.dataset.r=r;rects[r]=q;svg.append(q)})}\n"
    "  const b=make('button','plain picture',$('caption'));b.onclick=()=>{pale=!pale;paint()};\n"
    "  }else{$('stage').hidden=$('caption').hidden=true}\n"
    "const fill=a=>'rgba(var(--heat),'+(0.85*a).toFixed(3)+')';\n"
    "function paint(){bar.querySelectorAll('button').forEach(b=>b.classList.toggle('on',b.test()));\n"
    "  ths.forEach((h,i)=>h.classList.toggle('on',i===layer));\n"
    "  $('stage').className=pale?'pale':'plain';const b=$('caption').querySelector('button');\n"
    "  if(b)b.className=pale?'':'on';$('caption').firstChild.textContent=(mode==='rank'?'rank of '+D.word.text:\n"
    "    'probability of the likeliest word')+', '+(cols[layer]==='E'?'input "
    "embeddings':cols[layer]==='input'?'input':\n"
    "    'layer '+cols[layer]);\n"
    "  D.rows.forEach((x,r)=>{const pic=x.role==='image';\n"
    "    trs[r].hidden=show==='image'?!pic:show==='text'?pic:false;\n"
    "    cols.forEach((_,c)=>{const td=tds[r][c],s=strength(r,c),x=cellOf(r,c);\n"
    "      td.textContent=mode==='rank'?(rankOf(r,c)||''):x.length?word(x[0]):'';\n"
    "      td.style.background=s>0.01?fill(s):'';td.style.color=s>0.6?'#fff':''})});\n"
    "  for(const r in rects){rects[r].style.fill=fill(strength(r,layer))}}\n"
    "function detail(r,c){const d=$('detail');d.replaceChildren();const x=D.rows[r],k=rankOf(r,c),cell=cellOf(r,c);\n"
    "  make('h2','row '+x.row+' \\u00b7 '+rowName(r)+' ('+x.role+') \\u00b7 '+(isP(c)?cols[c]==='input'?'input':\n"
    "    'layer '+cols[c]:'input embeddings, '+E.measure),d);\n"
    "  const top=cell.length?cell[1]:1;\n"
    "  for(let i=0;i<cell.length;i+=2){const w=make('div',undefined,d,'w'),s=cell[i+1];make('b',word(cell[i]),w);\n"
    "    const p=isP(c)?Math.exp(s):Math.max(0,s/Math.max(top,1e-9)),b=make('i',undefined,w);\n"
    "    b.style.width=(100*p).toFixed(1)+'%';make('span',isP(c)?p.toFixed(3):s.toFixed(3),w)}\n"
    "  if(k)make('div','rank of '+D.word.text+': '+k,d,'n')}\n"
    "let lit=null,at=null;\n"
    "function "
    "light(r,c,scroll){if(lit!==null){trs[lit].classList.remove('on');if(rects[lit])rects[lit].classList.remove('on')}"
    "\n"
    "  if(at)at.classList.remove('at');lit=r;at=null;if(r===null)return;\n"
    "  trs[r].classList.add('on');at=tds[r][c];at.classList.add('at');\n"
    "  if(rects[r]){rects[r].classList.add('on');rects[r].parentNode.append(rects[r])}\n"
    "  if(scroll){const s=$('scroll'),t=trs[r];\n"
    "    if(t.offsetTop<s.scrollTop+30||t.offsetTop+t.offsetHeight>s.scrollTop+s.clientHeight)\n"
    "      s.scrollTop=t.offsetTop-s.clientHeight/2}\n"
    "  detail(r,c)}\n"
    "const target=e=>{const td=e.target.closest('td,tbody th');\n"
    "  return td&&td.closest('tr').dataset.r!==undefined?[+td.closest('tr').dataset.r,\n"
    "    td.dataset.c===undefined?layer:+td.dataset.c,false]:null};\n"
    "const patch=e=>e.target.dataset&&e.target.dataset.r!==undefined?[+e.target.dataset.r,layer,true]:null;\n"
    "[[table,target],[$('stage'),patch]].forEach(([node,find])=>{if(!node)return;\n"
    "  node.addEventListener('mouseover',e=>{const x=find(e);if(x&&locked===null)light(...x)});\n"
    "  node.addEventListener('click',e=>{const x=find(e);if(!x)return;\n"
    "    const same=locked&&locked[0]===x[0]&&locked[1]===x[1];locked=same?null:x;light(...x)})});\n"
    "addEventListener('keydown',e=>{if(e.key==='Escape')locked=null});\n"
    "if(D.word_by_role){const R=$('roles');make('h2','Rank of '+D.word.text+' by role: best, with the mean of "
    "1/rank',R);\n"
    "  const t=make('table',undefined,make('div',undefined,R)),h=make('tr',undefined,t);make('th','role',h);\n"
    "  D.layers.forEach(c=>make('th',c,h));\n"
    "  for(const role in D.word_by_role){const x=D.word_by_role[role],tr=make('tr',undefined,t);make('th',role,tr);\n"
    "    x.best_rank.forEach((b,i)=>{const td=make('td',b,tr);td.title='mean of 1/rank '+\n"
    "      x.mean_reciprocal_rank[i].toFixed(4);td.style.background=fill(1/(1+Math.log2(b)));\n"
    "      td.style.color=b<2?'#fff':''})}}\n"
    "paint();light(D.rows.length-1,cols.length-1,true);\n";

/* ---- the picture inside ---------------------------------------------------------------------------------- */
static cairo_status_t collect(void *ud, const unsigned char *p, unsigned n) {
  chi_str *s = ud;
  chi_str_addn(s, (const char *)p, n);
  return s->failed ? CAIRO_STATUS_NO_MEMORY : CAIRO_STATUS_SUCCESS;
}

static int png_of(chi_str *out, const chi_image *im, chi_err *err) {
  cairo_surface_t *s = cairo_image_surface_create(CAIRO_FORMAT_RGB24, im->w, im->h);
  unsigned char *to = cairo_image_surface_get_data(s);
  int stride = cairo_image_surface_get_stride(s);
  for (int y = 0; to && y < im->h; y++)
    for (int x = 0; x < im->w; x++) {
      const uint8_t *p = im->rgb + 3 * ((size_t)y * (size_t)im->w + (size_t)x);
      uint32_t v = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 8 | p[2];
      memcpy(to + (size_t)y * (size_t)stride + 4 * (size_t)x, &v, 4);
    }
  cairo_surface_mark_dirty(s);
  bool good = to && cairo_surface_write_to_png_stream(s, collect, out) == CAIRO_STATUS_SUCCESS && !out->failed;
  cairo_surface_destroy(s);
  return good ? 0 : chi_fail(err, CHI_ERR_MEMORY, "no memory for the page's picture");
}

static void add_base64(chi_str *out, const uint8_t *p, size_t n) {
  static const char kDigit[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < n; i += 3) {
    uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) | (i + 2 < n ? p[i + 2] : 0);
    char c[4] = {kDigit[v >> 18], kDigit[v >> 12 & 63], i + 1 < n ? kDigit[v >> 6 & 63] : '=',
                 i + 2 < n ? kDigit[v & 63] : '='};
    chi_str_addn(out, c, 4);
  }
}

int chii_lens_page(chi_str *out, const char *data, const chi_image *seen, chi_err *err) {
  int rc = 0;
  chi_str png = {0};
  if (seen) CHI_TRY(png_of(&png, seen, err));
  chi_str_add(out, "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>\n");
  chi_str_add(out, "<meta name='viewport' content='width=device-width,initial-scale=1'>\n<title>chiasm lens</title>\n");
  chi_str_add(out, "<style>\n");
  chi_str_add(out, kStyle);
  chi_str_add(out, "</style></head><body>\n");
  chi_str_add(out, kBody);
  chi_str_add(out, "<script type='application/json' id='data'>");
  for (const char *p = data; *p;) { /* no tag can begin inside the data */
    size_t n = strcspn(p, "<");
    chi_str_addn(out, p, n);
    p += n;
    if (*p) chi_str_add(out, "\\u003c"), p++;
  }
  chi_str_add(out, "</script>\n<script>window.PICTURE=");
  if (seen) {
    chi_str_add(out, "'data:image/png;base64,");
    add_base64(out, (const uint8_t *)png.s, png.len);
    chi_str_add(out, "'");
  } else {
    chi_str_add(out, "null");
  }
  chi_str_add(out, ";</script>\n<script>\n");
  chi_str_add(out, kScript);
  chi_str_add(out, "</script></body></html>\n");
  if (out->failed) rc = chi_fail(err, CHI_ERR_MEMORY, "no memory for the page");
out:
  chi_str_free(&png);
  return rc;
}
